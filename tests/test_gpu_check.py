"""`make gpu-check`, tried out at toy sizes where there is no card: what it finds, and that no section takes another along."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.finding import Measured, tried


def test_at_toy_sizes_every_operation_passes_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_check.main(["--device", "cpu", "--toy", "shapes"]) == 0
    table = capsys.readouterr().out
    assert "7 of 7 checks passed" in table and "FAIL" not in table and "triton:" in table
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check.log"]


def test_a_section_out_of_time_or_broken_is_a_failure_and_the_next_one_runs(monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    sections = {"laws": ("never done in a tenth of a second", 1.1), "missing": ("no such file", 60), "shapes": ("", 60)}
    monkeypatch.setattr(gpu_check, "_SECTIONS", sections)
    assert gpu_check.main(["--device", "cpu", "--toy"]) == 1
    table = capsys.readouterr().out
    assert "stopped after 1 s" in table and "its process ended with 1: ModuleNotFoundError" in table
    assert "7 of 9 checks passed" in table


def test_a_check_says_what_it_saw_measures_or_fails_with_its_reason():
    def broken() -> str:
        raise RuntimeError("out of\n memory")

    assert str(tried("a", lambda: "fine")).split() == ["pass", "a", "fine"]
    assert str(tried("a", lambda: Measured(2.0, "ms"))).split() == ["a", "2", "ms"]
    found = tried("a", broken)
    assert found.passed is False and found.note == "RuntimeError: out of memory"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a card")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no CUDA device that PyTorch sees"),
        (["--device", "cpu"], "add --toy"),
        (["speed", "--toy"], "there is no section 'speed'"),
    ],
)
def test_where_it_cannot_run_it_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(arguments)
    assert message in capsys.readouterr().err
