"""What a sweep takes beyond its cells, at 100 of them, and its memory against their number."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, peak_memory, ratio, seconds
from sparsity_core import load
from sparsity_core.evaluate import CellSpec, perplexity, read_sweep, run_cell, sweep
from sparsity_core.models import evaluation_text

_BUDGETS = range(16, 116)
_THREADS = f"{torch.get_num_threads()} threads"
_GRID = f"""
models: smollm2-135m
pipelines: [{{pipeline: "eviction=a2sf(budget=64)", knobs: {{eviction.budget: {[*_BUDGETS]}}}}}]
texts: TEXT
block: 256
most_blocks: 1
"""
# What a cell costs beyond its computation, alone: a text of two words has no block of 256 tokens, so that every cell fails.
_EMPTY = _GRID.replace("TEXT", "short.txt")


def main(data: Path) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "text.txt").write_text(evaluation_text())
        (folder / "short.txt").write_text("Two words")
        (folder / "grid.yaml").write_text(_GRID.replace("TEXT", "text.txt"))
        return [_memory(folder), *_times(folder)]


def _times(folder: Path) -> list[Row]:
    grid, here, there = folder / "grid.yaml", folder / "here", folder / "there"
    command = [sys.executable, "-m", "sparsity_core", "sweep", str(grid), "--out", str(there)]
    rows = [
        _beyond_cells("100 cells in this process", here, lambda: sweep(grid, here, processes=0)),
        _beyond_cells(
            "100 cells by the command, from its start to its end",
            there,
            lambda: subprocess.run(command, check=True, capture_output=True),
        ),
        _one_cell(folder),
    ]
    values, others = _values(here), _values(there)
    assert values == others and len(values) == len(_BUDGETS), "the two ways find other perplexities"
    return rows


def _beyond_cells(name: str, out: Path, function: Callable[[], Any]) -> Row:
    """How long a sweep takes over the time that its cells say they took."""
    wall, within = seconds(function), float(read_sweep(out)["seconds"].sum())
    return _said(
        Row(name, wall / within, "", 1.05, "the time within cells", f"{wall:.1f} s against {within:.1f} s, {_THREADS}")
    )


def _one_cell(folder: Path) -> Row:
    """What a cell takes over the function that it calls, in turns, at each fifth of the budgets."""
    path, model = folder / "text.txt", load()
    text = path.read_text()
    times, within = [], []
    for budget in _BUDGETS[::5]:
        spec = CellSpec("smollm2-135m", f"eviction=a2sf(budget={budget})", text=str(path), block=256, most_blocks=1)
        rows: list[dict[str, Any]] = []
        plain: list[float] = []
        _, took, over = ratio(
            lambda spec=spec, rows=rows: rows.extend(run_cell(spec)),  # type: ignore[misc]
            lambda spec=spec, plain=plain: plain.append(  # type: ignore[misc]
                perplexity(model, text, spec.pipeline, block=256, most_blocks=1).perplexity
            ),
            runs=1,
            warmup=0,
        )
        assert rows[0]["value"] == plain[0]
        times.append(over)
        within.append(took)
    note = f"medians of {len(times)}, in turns; {statistics.median(within):.2f} s"
    return _said(Row("one cell", statistics.median(times), "", 1.05, "its function", note))


def _values(folder: Path) -> dict[str, float]:
    table = read_sweep(folder)
    return dict(zip(table["pipeline"], table["value"], strict=True))


def _memory(folder: Path) -> Row:
    peaks = []
    for seeds in (1, 1, 50):  # the first loads the model
        (folder / "empty.yaml").write_text(f"{_EMPTY}seeds: {[*range(seeds)]}\n")
        out = tempfile.mkdtemp(dir=folder)
        peaks.append(peak_memory(lambda out=out: sweep(folder / "empty.yaml", out, processes=0)) / 2**20)  # type: ignore[misc]
    note = f"peaks of {peaks[1]:.1f} and {peaks[2]:.1f} MiB beyond what the process held before"
    row = Row("memory of 5,000 cells beyond that of 100", peaks[2] - peaks[1], "MiB", 16.0, "", note)
    return _said(row)


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row
