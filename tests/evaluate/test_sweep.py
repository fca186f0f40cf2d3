"""Sweeps: each cell once, whatever ends them, by every door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from sparsity_core.cli.main import main
from sparsity_core.evaluate.accuracies import accuracy
from sparsity_core.evaluate.cells import CellSpec, run_cell
from sparsity_core.evaluate.perplexities import perplexity
from sparsity_core.evaluate.sweeping import read_sweep, sweep
from sparsity_core.models.loading import load
from tests import tiny

TASKS = Path(__file__).parent / "tasks"
ROOT = Path(__file__).parents[2]
GRID = """
models: model
pipelines:
  - dense
  - pipeline: eviction=streaming_llm(budget=12)
    knobs: {eviction.budget: [8, 12, 16]}
texts: text.txt
tasks: arc_easy
data: tasks
seeds: [0, 1]
block: 32
most_blocks: 1
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny model, a text, a task and a grid of 16 cells."""
    tiny.transformer("llama", torch.float32).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "tasks").symlink_to(TASKS)
    (tmp_path / "grid.yaml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}


def test_a_sweep_computes_each_cell_once_and_its_table_is_what_the_functions_say(place):
    done = sweep("grid.yaml", "out", processes=0)
    assert (done.computed, done.found, done.failed, done.missing) == (16, 0, 0, 0)
    before = files(place / "out")
    assert len(before) == 16 and len(list((place / "out").iterdir())) == 16  # no lock, no unfinished file is left
    again = sweep("grid.yaml", "out", processes=0)
    assert (again.computed, again.found, again.failed) == (0, 16, 0) and files(place / "out") == before

    table = read_sweep(place / "out").set_index(["task", "pipeline", "seed", "metric"])
    model, pipeline = load(str(place / "model")), "eviction=streaming_llm(budget=8)"
    read = table.loc[("", pipeline, 0, "perplexity")]
    alone = perplexity(model, tiny.TEXT, pipeline, block=32)
    assert read["value"] == alone.perplexity and read["n"] == 31
    np.testing.assert_allclose(read["items"], alone.of_blocks, rtol=1e-6)
    assert read["kv_share"] == 8 / 32
    scored, found = (
        table.loc[("arc_easy", pipeline, 1, "acc")],
        accuracy(model, ["arc_easy"], pipeline, data="tasks", seed=1),
    )
    row, items = found.table.iloc[0], found.items[found.items["metric"] == "acc"]
    assert all(scored[name] == row[name] for name in ("value", "stderr", "n", "split", "kv_share"))
    np.testing.assert_array_equal(scored["items"], items["value"])


def test_a_cell_that_fails_is_a_row_with_its_reason_and_the_others_go_on(place):
    grid = GRID.replace("[8, 12, 16]", "[3, 12]").replace(
        "streaming_llm(budget=12)", "streaming_llm(budget=12, n_sink=2)"
    )
    (place / "grid.yaml").write_text(grid.replace("block: 32", "block: 400\nlimit: 1"))
    done = sweep("grid.yaml", "out", processes=0)
    assert (done.computed, done.found, done.failed) == (6, 0, 6)
    table = read_sweep("out")
    reasons = table[table["error"] != ""]
    assert set(reasons["task"]) == {""} and len(reasons) == 6 and reasons["value"].isna().all()
    assert reasons["error"].str.contains("Block is 2 to 320 tokens").all()
    again = sweep("grid.yaml", "out", processes=0)
    assert (again.computed, again.found, again.failed) == (0, 6, 6)
    retried = sweep("grid.yaml", "out", processes=0, retry=True)
    assert (retried.computed, retried.failed) == (0, 6)


def test_shards_part_the_cells(place):
    shards = [sweep("grid.yaml", "out", processes=0, shard=(i, 3)) for i in (1, 2, 3)]
    assert sum(shard.computed for shard in shards) == 16 and not any(shard.found for shard in shards)
    assert all(shard.computed < 16 for shard in shards)
    assert sweep("grid.yaml", "out", processes=0).found == 16


def test_what_a_sweep_cannot_do_is_refused_before_it_runs(place):
    for how, sentence in (
        ({"processes": -1}, "processes is 0, this process itself, or more"),
        ({"shard": (4, 3)}, "a shard is i/n"),
        ({"shard": (1, 2), "ray": "auto"}, "cells go through one door"),
        ({"most_cells": 3}, "16 cells, more than 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sweep("grid.yaml", "out", **how)
    with pytest.raises(ValueError, match="holds no cells of a sweep"):
        read_sweep(place)
    (place / "broken").mkdir()
    (place / "broken" / "x.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"x.parquet cannot be read .* remove it and sweep again"):
        read_sweep(place / "broken")


def test_cancelling_ends_the_sweep_and_keeps_what_is_computed(place):
    def progress(share, doing):
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep("grid.yaml", "out", processes=0, progress=progress)
    held = len(files(place / "out"))
    assert 4 < held < 16
    assert sweep("grid.yaml", "out", processes=0).found == held


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "sparsity_core", "sweep", "grid.yaml", "--out", "out", "--json", *more]


def begun(*more: str) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.Popen(command(*more), env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_nothing_is_computed_twice_or_lost(place):
    """Driver and worker are killed; a second sweep, whose worker is killed once, does the rest."""
    first = begun("--processes", "1")
    wait_for(lambda: len(files(place / "out")) >= 3)
    worker = psutil.Process(first.pid).children()[0]
    first.kill()
    first.wait()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)  # it ends with its driver
    before = files(place / "out")
    assert 3 <= len(before) < 16
    second = begun("--processes", "2")
    wait_for(lambda: len(files(place / "out")) > len(before))
    psutil.Process(second.pid).children()[0].kill()
    found = json.loads(second.communicate()[0])
    assert second.returncode == 0
    assert (found["computed"], found["found"], found["failed"]) == (16 - len(before), len(before), 0)
    after = files(place / "out")
    assert len(after) == 16 and all(after[name] == when for name, when in before.items())
    assert len(read_sweep(place / "out")["key"].unique()) == 16


def test_two_sweeps_of_one_folder_share_the_cells(place):
    found = []
    threads = [threading.Thread(target=lambda: found.append(sweep("grid.yaml", "out", processes=0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done.computed for done in found) == 16 and all(done.computed + done.found == 16 for done in found)


METHOD = '''
import os
from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import EvictionMethod, LayerShape, ScanRule, register


@register
@dataclass(frozen=True)
class Fatal(EvictionMethod):
    """Ends its process, or takes its memory."""

    source: ClassVar[str] = "a test"
    equation: ClassVar[str] = "x"

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        if budget == 8:
            os.kill(os.getpid(), 9)
        import torch, time
        held = torch.ones(2**28)  # 1 GiB
        time.sleep(5)
        return ScanRule(budget=budget)
'''


@pytest.mark.slow
def test_a_cell_that_ends_its_process_or_takes_all_memory_is_a_row(place, monkeypatch):
    (place / "plugins" / "methods").mkdir(parents=True)
    (place / "plugins" / "methods" / "fatal.py").write_text(METHOD)
    monkeypatch.setenv("SPARSELENS_PLUGINS", str(place / "plugins"))
    monkeypatch.setenv("SPARSELENS_JOB_GIB", "1.0")
    (place / "grid.yaml").write_text(
        "models: model\ntexts: text.txt\nblock: whole\npipelines: ['eviction=fatal(budget=8)', 'eviction=fatal(budget=9)', dense]"
    )
    script = "from sparsity_core.evaluate import sweep; print(sweep('grid.yaml', 'out'))"  # a registry of its own
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "computed=1, found=0, failed=2" in done.stdout, done.stderr
    killed, large = (
        read_sweep("out").set_index("pipeline")["error"].loc[["eviction=fatal(budget=8)", "eviction=fatal(budget=9)"]]
    )
    assert "most likely as the machine ran out of memory" in killed
    assert "took more than 1.0 GiB of memory" in large and "--processes" in large


def test_a_model_that_cannot_be_had_is_told_before_anything_runs(place):
    (place / "grid.yaml").write_text("models: [model, /no/such/model]\ntexts: text.txt")
    with pytest.raises(ValueError, match="There is no folder /no/such/model"):
        sweep("grid.yaml", "out", processes=0)
    assert not files(place / "out")


def test_run_cell_is_the_same_in_any_process_and_tells_what_failed():
    rows = run_cell(CellSpec("/no/such/model", text=__file__))
    assert len(rows) == 1 and "there is no folder /no/such/model" in rows[0]["error"].lower()


def test_the_command_counts_and_refuses(place, capsys):
    assert main(["sweep", "grid.yaml", "--out", "out", "--processes", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("cells", "computed", "found", "failed")} == {
        "cells": 16, "computed": 16, "found": 0, "failed": 0,
    }  # fmt: skip
    for arguments, sentence in (
        (["--shard", "1of3"], "a shard is written i/n"),
        (["--shard", "1/2", "--ray", "auto"], "not allowed with argument"),
        (["--slurm", "1", "--slurm-options", "x"], "one JSON object"),
    ):
        assert main(["sweep", "grid.yaml", "--out", "out", *arguments]) == 2
        assert sentence in capsys.readouterr().err


def test_a_sweep_reads_its_grid_and_starts_without_torch(place):
    script = (
        "import sys\nfrom sparsity_core.evaluate import read_grid, sweep\n"
        "heavy = {'torch', 'transformers', 'lm_eval'} & set(sys.modules)\n"
        "print(len({cell.key for cell in read_grid('grid.yaml').cells()}), sorted(heavy))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "16 []\n", done.stderr
