"""Accuracy on tasks under a pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_core.evaluate.task_checks import check_tasks
from sparsity_core.inference import pipeline_of, whole
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from sparsity_core.evaluate.harness import PipelineLM


@dataclass(frozen=True, eq=False)
class Accuracy:
    """What a pipeline scores on tasks.

    Attributes:
        table: one row a task and metric: task, metric, value, stderr (of the mean, over its questions), n (questions), split,
            shots, question (known or unknown to what compresses the prompt), kv_share (bytes that the cache held at the end of
            each text over those of nothing dropped; their mean).
        items: one row a question and metric: task, metric, item, value. Equal items of two pipelines are pairs.
    """

    table: pd.DataFrame
    items: pd.DataFrame
    pipeline: str


def accuracy(
    model: Model,
    tasks: Sequence[str],
    pipeline: Pipeline | str | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    shots: int | None = None,
    density: float | None = None,
    length: int | None = None,
    question: str = "known",
    add_bos: str = "auto",
    seed: int = 0,
    batch_size: int = 1,
    progress: Progress = silent,
) -> Accuracy:
    """Accuracy on tasks of lm-evaluation-harness, each request followed on its own under the pipeline, all of it a decode step.

    A method of one cut, as SnapKV, makes it where the answer begins: the question is known to it. Answers of RULER's tasks are
    generated, from a cache that loses what the pipeline drops; `string_match` is the share of what was asked for that they hold.

    Args:
        tasks: names of lm-evaluation-harness, with `data` those of `LOCAL_TASKS`; and of RULER (`ruler`), which are made.
        pipeline: a Pipeline or its text; the dense model where None.
        data: a folder with a file TASK.jsonl each (`local_tasks`); the hub where None.
        limit: only so many of the first questions of each task.
        shots: solved examples before each question; as the task says where None.
        density: the eviction stage keeps max(8, round(density · tokens)) keys of each request, in place of its budget.
        length: tokens of a prompt of RULER's and its answer, 4,096 where None.
        question: "unknown" reads a prompt of RULER's up to its question at once, and the rest a token at a time, so that a
            method of one cut does not know what it is asked.
        add_bos: as in `run`; never two start tokens.
        seed: of random eviction, and of which examples stand before a question.
        batch_size: requests that share a forward: faster where they are short or generate, and equal but for rounding.

    Raises ValueError for unknown tasks, files and rows that cannot be read (with their place), a pipeline that gives no
    losses, and where lm-evaluation-harness is not installed; and whatever `progress` raises to cancel.
    """
    chosen = pipeline_of(pipeline)
    folder = None if data is None else Path(data)
    batch_size, how = whole("batch_size", batch_size), {"limit": limit, "shots": shots, "length": length}
    check_tasks(tasks, chosen, data=folder, density=density, question=question, batch_size=batch_size, **how)  # type: ignore[arg-type]
    from sparsity_core.evaluate.harness import PipelineLM, Setting, harness_results

    tables, items = [], []
    for place, name in enumerate(tasks):

        def report(share: float, doing: str, place: int = place, name: str = name) -> None:
            progress((place + share) / len(tasks), f"{name}, {doing}")

        lm = PipelineLM(model, Setting(chosen, density, add_bos, whole("seed", seed), question, batch_size), report)
        found, splits = harness_results(lm, name, folder, seed=seed, **how)
        tables += _rows(found, splits, lm)
        items += _items(found)
    progress(1.0, "scored")
    return _told(tables, items, chosen)


def _rows(found: dict[str, Any], splits: dict[str, str], lm: PipelineLM) -> list[dict[str, Any]]:
    shares, rows = lm.kv_shares, []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, named = key.partition(",")
            if not named or metric.endswith("_stderr"):
                continue
            stderr = metrics.get(f"{metric}_stderr,{named}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if named == "none" else f"{metric} ({named})",
                    "value": float(value),
                    "stderr": stderr if isinstance(stderr, float) else float("nan"),
                    "n": found["n-samples"].get(task, {}).get("effective", 0),
                    "split": splits.get(task, "its tasks'"),
                    "shots": found["n-shot"].get(task, 0),
                    "question": lm.setting.question,
                    "kv_share": sum(shares) / len(shares) if shares else float("nan"),
                }
            )
    return rows


def _items(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"task": task, "metric": metric, "item": sample["doc_id"], "value": float(sample[metric])}
        for task, samples in found["samples"].items()
        for sample in samples
        for metric in sample["metrics"]
        if isinstance(sample[metric], (bool, int, float))
    ]


def _told(tables: list[dict[str, Any]], items: list[dict[str, Any]], pipeline: Pipeline) -> Accuracy:
    import pandas as pd

    return Accuracy(
        pd.DataFrame(tables), pd.DataFrame(items, columns=["task", "metric", "item", "value"]), str(pipeline)
    )
