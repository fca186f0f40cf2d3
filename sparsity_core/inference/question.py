"""Where a prompt is parted: what is read before a method of one cut makes its cut."""

from __future__ import annotations

from collections.abc import Sequence

from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline
from sparsity_core.models import QUESTION, Model
from sparsity_core.record import question_at


def asked_of_prompt(model: Model, ids: Sequence[int], question: str, n_prefill: int | None) -> int | None:
    """How many tokens of a prompt `question` lets be read at once; what `n_prefill` asks where it is "auto".

    "unknown": those before the question's first; "known": all. Raises ValueError, as a sentence, where that cannot be.
    """
    if _is_auto(question, n_prefill):
        return n_prefill
    return len(ids) if question == "known" else _begin(model, ids)


def asked_of_run(
    model: Model, ids: Sequence[int], pipeline: Pipeline, question: str, n_prefill: int | None
) -> int | None:
    """As `asked_of_prompt`, of a run, which reads nothing after its text: "known" is up to the question's last token."""
    if _is_auto(question, n_prefill):
        return n_prefill
    if question == "unknown":
        if pipeline.prefill is not None:
            raise ValueError(
                f"{pipeline.prefill.name} reads a run's text at once, its question too: generate tokens, leave prefill out, "
                "or leave question at auto"
            )
        return _begin(model, ids)
    end = _place(model, ids, question)[1]
    if end == len(ids):
        raise ValueError(
            "the prompt ends with its question, and a run reads nothing after it: generate tokens, or ask for "
            "question=unknown"
        )
    return end


def _is_auto(question: str, n_prefill: int | None) -> bool:
    if question not in QUESTION:
        raise ValueError(f"question is one of {', '.join(QUESTION)}; got {question!r}")
    if question != "auto" and n_prefill is not None:
        raise ValueError("n_prefill and question both say what is read before the cut: give one of the two")
    return question == "auto"


def _begin(model: Model, ids: Sequence[int]) -> int:
    first = _place(model, ids, "unknown")[0]
    if first == 0:
        raise ValueError(
            "the prompt begins with its question, so nothing stands before it to compress: put the text first, or leave "
            "question at auto"
        )
    return first


def _place(model: Model, ids: Sequence[int], question: str) -> tuple[int, int]:
    """(the question's first token, the one after its last). Raises ValueError where none is found."""
    words = Words.of(model, list(ids))
    found = question_at(words.texts)
    if found is None:
        raise ValueError(
            f"no question is found in the prompt, so it cannot be {question}: write it as `Question: … Answer:`, end the "
            "prompt with a sentence that has a question mark, or leave question at auto"
        )
    return words.groups[found[0]], found[1]
