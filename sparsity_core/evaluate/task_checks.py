"""What tasks may be asked of a pipeline, told before a model is loaded. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsity_core.evaluate.densities import check_density
from sparsity_core.evaluate.local_tasks import rows_of
from sparsity_core.evaluate.ruler import RULER_TASKS
from sparsity_core.kinds import Pipeline


def check_tasks(
    tasks: Sequence[str],
    pipeline: Pipeline,
    *,
    data: Path | None,
    limit: int | None = None,
    shots: int | None = None,
    density: float | None = None,
    length: int | None = None,
    question: str = "known",
    batch_size: int = 1,
) -> None:
    """Raises ValueError, before any model is loaded, for what `accuracy` would refuse of its arguments."""
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks is a list of names, as in ['arc_easy']; got {tasks!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is at least 1 question of each task; got {limit}")
    if shots is not None and shots < 0:
        raise ValueError(f"shots is 0 or more examples before each question; got {shots}")
    if batch_size < 1:
        raise ValueError(f"batch_size is 1 or more requests that share a forward; got {batch_size}")
    check_density(pipeline, density)
    others = [name for name in tasks if name not in RULER_TASKS]
    _check_made([name for name in tasks if name in RULER_TASKS], others, shots, length, question)
    if others and pipeline.prefill is not None and pipeline.prefill.looks_ahead:
        raise ValueError(
            f"{pipeline.prefill.name} looks ahead: later tokens decide what earlier ones see, so an answer has no probability "
            "under it. Choose a causal method, or a task of RULER, whose answer is generated"
        )
    _check_installed()
    if data is not None:
        for name in others:
            rows_of(name, data)


def _check_made(
    made: Sequence[str], others: Sequence[str], shots: int | None, length: int | None, question: str
) -> None:
    """Raises ValueError for what RULER's tasks, which are made, and the others do not take."""
    if length is not None and (length < 1 or not made):
        raise ValueError(
            f"length is the tokens of a prompt and its answer, of the tasks {', '.join(RULER_TASKS)} alone; got {length}"
        )
    if made and shots:
        raise ValueError(f"{made[0]} takes no solved examples: leave shots out")
    if question not in ("known", "unknown"):
        raise ValueError(f"question is known or unknown to what compresses the prompt; got {question!r}")
    if others and question == "unknown":
        raise ValueError(
            f"the question of {others[0]} is always known: question=unknown is for {', '.join(RULER_TASKS)}, whose question "
            "stands apart"
        )


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("lm_eval", "datasets", "pandas") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"tasks need lm-evaluation-harness, and {missing[0]} is not installed: pip install 'sparselens[eval]'"
        )
