"""A sweep's grid: what it counts, what it refuses before anything runs, and what names a cell's file."""

from __future__ import annotations

import shutil
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from sparsity_core.evaluate.cells import CellSpec
from sparsity_core.evaluate.grids import read_grid
from sparsity_core.evaluate.sweeping import sweep

ROOT = Path(__file__).parents[2]
TASKS = Path(__file__).parent / "tasks"
GRID = """
models: [one, two]
pipelines:
  - dense
  - pipeline: eviction=a2sf(budget=64)
    knobs: {eviction.budget: [16, 32, 64], eviction.forgetting_factor: [0.1, 1.0]}
  - decode=quest
texts: [text.txt]
tasks: [arc_easy]
data: tasks
densities: [0.2, 0.4]
seeds: [0, 1, 2]
"""


def written(folder: Path, text: str = GRID) -> Path:
    (folder / "text.txt").write_text("A text of some words.")
    shutil.copytree(TASKS, folder / "tasks", dirs_exist_ok=True)
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def test_a_grid_counts_its_cells_as_it_makes_them(tmp_path):
    grid = read_grid(written(tmp_path))
    # dense and quest evict nothing, so densities leave them alone: 2 models × (1 + 6 · 2 + 1) × (1 text + 1 task) × 3 seeds
    assert grid.count == 2 * (1 + 6 * 2 + 1) * 2 * 3 == len(list(grid.cells()))
    keys = [cell.key for cell in grid.cells()]
    assert len(set(keys)) == len(keys)
    first, last = next(grid.cells()), list(grid.cells())[-1]
    assert (first.model, first.pipeline, first.text, first.task) == ("one", "dense", str(tmp_path / "text.txt"), "")
    assert (last.model, last.pipeline, last.task, last.seed) == ("two", "decode=quest(tokens=0.25)", "arc_easy", 2)


def test_a_grid_of_ten_million_cells_is_refused_at_once_unless_asked_for(tmp_path):
    budgets, hundredths, seeds = range(8, 108), [n / 100 for n in range(1, 101)], range(1000)
    many = f"""
models: one
pipelines: [{{pipeline: eviction=a2sf, knobs: {{eviction.budget: {[*budgets]}, eviction.forgetting_factor: {hundredths}}}}}]
texts: text.txt
seeds: {[*seeds]}
"""
    grid = read_grid(written(tmp_path, many))
    with pytest.raises(ValueError, match=r"the grid has 10,000,000 cells, more than 10,000: .* --yes"):
        sweep(grid, tmp_path / "out", processes=0)
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_number_of_cells(tmp_path):
    grid = replace(read_grid(written(tmp_path)), seeds=range(400))
    tracemalloc.start()
    assert sum(1 for _ in grid.cells()) == grid.count == 56 * 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # 47 bytes a cell, of which a spec alone takes 10 times as many


def test_a_cell_is_named_by_content_and_not_by_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("one text")
        shutil.copytree(TASKS, tmp_path / folder / "tasks")
    of_a, of_b = (CellSpec("m", text=str(tmp_path / f / "text.txt")) for f in "ab")
    task_a, task_b = (CellSpec("m", task="arc_easy", data=str(tmp_path / f / "tasks")) for f in "ab")
    assert of_a.key == of_b.key and task_a.key == task_b.key != of_a.key
    before = of_b.key
    (tmp_path / "b" / "text.txt").write_text("another text")
    assert of_b.key != before == of_a.key
    assert replace(of_a, seed=1).key != of_a.key != replace(of_a, pipeline="eviction=h2o(budget=8)").key


def test_lines_of_a_jsonl_file_and_files_of_a_folder_are_texts(tmp_path):
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.txt").write_text("a")
    (tmp_path / "many" / "b.md").write_text("b")
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n\n{"prompt": "two"}\n')
    grid = read_grid(written(tmp_path, "models: m\ntexts: [many, lines.jsonl]\nblock: whole"))
    lines, many = str(tmp_path / "lines.jsonl"), tmp_path / "many"
    assert grid.texts == ((str(many / "a.txt"), 0), (str(many / "b.md"), 0), (lines, 1), (lines, 3))
    assert {cell.block for cell in grid.cells()} == {0}


BAD = {
    "no list": ("- a\n- b", "is no grid: write models, pipelines"),
    "no YAML": ("models: [a", "is no YAML"),
    "an unknown axis": ("modles: [a]\ntexts: text.txt", "a grid has no 'modles'; did you mean 'models'"),
    "no model": ("texts: text.txt", "a grid names models"),
    "nothing measured": ("models: a", "measures nothing: name texts, tasks or both"),
    "an unknown method": ("models: a\ntexts: text.txt\npipelines: eviction=a2fs", "did you mean 'a2sf'"),
    "an unknown stage": (
        "models: a\ntexts: text.txt\npipelines: [{pipeline: eviction=h2o, knobs: {evict.budget: [1]}}]",
        "a knob is written stage.knob, as in eviction.budget; got 'evict.budget'; did you mean 'eviction'",
    ),
    "an unknown knob": (
        "models: a\ntexts: text.txt\npipelines: [{pipeline: eviction=h2o, knobs: {eviction.budgt: [1]}}]",
        "h2o has no knob 'budgt'; did you mean 'budget'",
    ),
    "a knob of a stage that is empty": (
        "models: a\ntexts: text.txt\npipelines: [{pipeline: dense, knobs: {eviction.budget: [1]}}]",
        "the pipeline dense has no method in its eviction stage",
    ),
    "a wrong value": (
        "models: a\ntexts: text.txt\npipelines: [{pipeline: eviction=h2o, knobs: {eviction.budget: [8, 0]}}]",
        "budget is at least 1; got 0",
    ),
    "no such text": ("models: a\ntexts: txet.txt", "there is no text .*txet.txt"),
    "an unknown task": ("models: a\ntasks: arc_esy\ndata: tasks", "did you mean 'arc_easy'"),
    "no such folder": ("models: a\ntasks: arc_easy\ndata: taks", "there is no folder .*taks"),
    "a seed that is none": ("models: a\ntexts: text.txt\nseeds: [x]", "seeds: a whole number is asked for; got 'x'"),
    "a density that is none": (
        "models: a\ntexts: text.txt\npipelines: eviction=h2o\ndensities: 3",
        "above 0 to 1; got 3",
    ),
    "a line that is no object": ("models: a\ntexts: bad.jsonl", "bad.jsonl, line 2: it is no JSON object"),
    "a question without a field": (
        "models: a\ntasks: piqa\ndata: tasks",
        "piqa.jsonl, line 2: the field 'gold' is missing; it has 'question', 'choices'",
    ),
    "what looks ahead": (
        "models: a\ntasks: arc_easy\ndata: tasks\npipelines: prefill=minference",
        "minference looks ahead",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_before_anything_runs(tmp_path, case):
    text, sentence = BAD[case]
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n[1]\n')
    grid = written(tmp_path, text)
    row = '{"question": "?", "choices": ["a", "b"]'
    (tmp_path / "tasks" / "piqa.jsonl").write_text(row + ', "gold": 0}\n' + row + "}\n")
    with pytest.raises(ValueError, match=sentence):
        read_grid(grid)


def test_the_grid_of_the_documentation_can_be_read(tmp_path):
    shown = (ROOT / "docs" / "sweeps.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text.")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n')
    grid = written(tmp_path, shown)
    shutil.copy(TASKS / "arc_easy.jsonl", tmp_path / "tasks" / "piqa.jsonl")
    # (dense + 3 forgetting factors · 3 densities + h2o · 3 densities) × (3 texts + 2 tasks) × 2 seeds
    assert read_grid(grid).count == (1 + 3 * 3 + 3) * (3 + 2) * 2


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_committed_grids_can_be_read(path):
    if not (ROOT.parent / "shared" / "data" / "tasks").is_dir():
        warnings.warn("../shared/data is absent: the committed grids are not read", stacklevel=1)
        pytest.skip("../shared/data is absent")
    grid = read_grid(path)
    assert grid.count == len({cell.key for cell in grid.cells()})
