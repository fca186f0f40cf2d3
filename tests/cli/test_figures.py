"""Traces and figures from the command line: a page of a trace, a figure's file, and what a file brings back."""

from __future__ import annotations

import pytest

from tests.cli.test_cli import A2SF, PROMPT, as_json, call


def test_a_run_writes_its_page(capsys, tmp_path):
    page = tmp_path / "new" / "trace.html"
    found = as_json(capsys, "run", "--prompt", PROMPT, "--pipeline", A2SF, "--device", "cpu", "--html", str(page))
    assert found["html"] == str(page)
    assert page.read_text().startswith("<!doctype html>") and "What a2sf dropped" in page.read_text()
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "run", "--prompt", "xy", "--html", str(tmp_path / "file" / "trace.html"))
    assert status == 2 and "cannot write to" in err


def test_a_figure_is_exported_and_its_file_tells_the_run_again(capsys, tmp_path):
    file = tmp_path / "new" / "loss.csv"
    run = ("--prompt", PROMPT, "--pipeline", A2SF, "--beside", "dense", "--device", "cpu", "--layer", "3")
    found = as_json(capsys, "export", "--figure", "loss", "--venue", "acl", "--columns", "2", "--out", str(file), *run)
    assert found["file"] == str(file) and found["width"] == pytest.approx(16 / 2.54)
    told = as_json(capsys, "restore", str(file))
    assert told["spec"] == {
        "model": "smollm2-135m", "prompt": PROMPT, "pipeline": A2SF, "generate": 0, "seed": 0, "device": "cpu",
        "dtype": "float32", "add_bos": "auto", "question": "auto",
    }  # fmt: skip
    assert [spec["pipeline"] for spec in told["specs"]] == [A2SF, "dense"]
    assert told["fields"]["layer"] == "3" and "layer=3" in told["link"]
    assert "--beside dense" in told["command"] and "--figure loss" in told["command"]
    status, out, _ = call(capsys, "restore", str(file))
    assert status == 0 and told["link"] in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--figure", "atlass", "--out", "a.csv"), "there is no figure 'atlass'; there are agreement, atlas"),
        (("--figure", "atlas", "--out", "a.gif"), "--out ends in one of .pdf, .svg"),
        (("--figure", "atlas", "--out", "a.csv", "--venue", "nature"), "no venue 'nature'"),
        (("--figure", "atlas", "--out", "a.csv", "--columns", "3"), "1 or 2 columns"),
        (("--figure", "atlas", "--out", "a.csv", "--width", "0"), "width is 0; allowed is 0.5 to 40 inches"),
        (("--figure", "atlas", "--out", "a.csv", "--head", "x"), "first, last or a number"),
        (("--figure", "atlas", "--out", "a.csv", "--beside", "dense"), "atlas shows one run"),
    ],
)
def test_a_figure_that_cannot_be_is_told_before_a_model_is_loaded(capsys, arguments, sentence):
    status, _, err = call(capsys, "export", "--prompt", "a", "--model", "/no/such/model", *arguments)
    assert status == 2 and sentence in err


def test_a_file_that_is_not_ours_is_told(capsys, tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 broken")
    for name, sentence in (("a.pdf", "this PDF is not from SparseLens"), ("none.pdf", "cannot read")):
        status, _, err = call(capsys, "restore", str(tmp_path / name))
        assert status == 2 and sentence in err
