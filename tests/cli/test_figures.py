"""Traces and figures from the command line: a page of a trace, a figure's file, and what a file brings back."""

from __future__ import annotations

from tests.cli.test_cli import A2SF, PROMPT, as_json, call


def test_a_run_writes_its_page(capsys, tmp_path):
    page = tmp_path / "new" / "trace.html"
    found = as_json(capsys, "run", "--prompt", PROMPT, "--pipeline", A2SF, "--device", "cpu", "--html", str(page))
    assert found["html"] == str(page)
    assert page.read_text().startswith("<!doctype html>") and "What a2sf dropped" in page.read_text()
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "run", "--prompt", "xy", "--html", str(tmp_path / "file" / "trace.html"))
    assert status == 2 and "cannot write to" in err
