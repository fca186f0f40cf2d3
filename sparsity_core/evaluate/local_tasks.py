"""Multiple-choice tasks from a folder of JSONL files, one question a line, as lm-evaluation-harness asks them.

A line is `{"question": …, "choices": [ … ], "gold": the index of the right choice}`, whatever the task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_core.evaluate.ruler import RULER_TASKS
from sparsity_core.kinds import nearest
from sparsity_core.work import read_regular

Row = Mapping[str, Any]


def _asked(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer:"


def _as_it_is(row: Row) -> str:
    return str(row["question"])


@dataclass(frozen=True)
class LocalTask:
    """How a row becomes a context and its continuations."""

    text: Callable[[Row], str] = _asked
    metrics: tuple[str, ...] = ("acc", "acc_norm")  # acc_norm: each log-probability over the choice's characters
    blank: bool = False  # the choice fills the `_` of the question, and what follows the blank is what is scored


LOCAL_TASKS = {
    "arc_easy": LocalTask(),
    "arc_challenge": LocalTask(),
    "piqa": LocalTask(),
    "mathqa": LocalTask(),
    "hellaswag": LocalTask(text=_as_it_is),
    "copa": LocalTask(text=_as_it_is, metrics=("acc",)),
    "winogrande": LocalTask(metrics=("acc",), blank=True),
}


def task_file(name: str, data: Path) -> Path:
    """The file of a task. Raises ValueError for an unknown task, and for one that the folder does not hold."""
    if name not in LOCAL_TASKS:
        raise ValueError(
            f"there is no task {name!r} that is read from files; {nearest(name, [*LOCAL_TASKS, *RULER_TASKS])}"
        )
    path = data / f"{name}.jsonl"
    if not path.is_file():
        if not data.is_dir():
            raise ValueError(f"there is no folder {data}: give the one that holds {path.name}")
        held = sorted(p.name for p in data.glob("*.jsonl"))
        raise ValueError(f"{data} holds no {path.name}; it holds {', '.join(held) or 'no file of that kind'}")
    return path


def rows_of(name: str, data: Path) -> list[dict[str, Any]]:
    """The checked rows of a task. Raises ValueError with the file, the line and the field of what is wrong."""
    path = task_file(name, data)
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8 first") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} is empty: give a file with a question a line")
    return [_row(f"{path}, line {number}", line, LOCAL_TASKS[name].blank) for number, line in numbered]


def _row(place: str, line: str, blank: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f'{place}: it is no JSON object; write {{"question": …, "choices": […], "gold": 0}}')
    for name in ("question", "choices", "gold"):
        if name not in row:
            raise ValueError(f"{place}: the field {name!r} is missing; it has {', '.join(map(repr, row)) or 'none'}")
    question, choices, gold = row["question"], row["choices"], row["gold"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{place}: the field 'question' is a text; got {question!r}")
    if blank and question.count("_") != 1:
        raise ValueError(f"{place}: the field 'question' has one blank, written _, which the choice fills")
    written = isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not written or len(choices) < 2:
        raise ValueError(f"{place}: the field 'choices' is a list of two texts or more; got {choices!r}")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise ValueError(f"{place}: the field 'gold' is the index of a choice, 0 to {len(choices) - 1}; got {gold!r}")
    return {"question": question, "choices": choices, "gold": gold}


def config_of(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The task as lm-evaluation-harness is told of it. Examples for few-shot prompts are other rows of the same file."""
    import datasets

    task = LOCAL_TASKS[name]
    asked: dict[str, Any] = {"doc_to_text": task.text, "doc_to_choice": "choices", "doc_to_target": "gold"}
    if task.blank:
        asked = {"doc_to_text": _gold, "doc_to_choice": _filled, "doc_to_target": _after_blank}
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in task.metrics],
        "metadata": {"version": 1.0},
        **asked,
    }


def _gold(row: Row) -> int:
    return int(row["gold"])


def _filled(row: Row) -> list[str]:
    before = row["question"].partition("_")[0]
    return [before + choice for choice in row["choices"]]


def _after_blank(row: Row) -> str:
    return str(row["question"].partition("_")[2]).strip()
