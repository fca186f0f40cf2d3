"""Where a prompt is parted: what is read before a method of one cut makes its cut."""

from __future__ import annotations

from collections.abc import Sequence

from sparsity_core.inference.words import Words
from sparsity_core.models import QUESTION, Model
from sparsity_core.record import question_at


def asked_prefill(
    model: Model, ids: Sequence[int], question: str, n_prefill: int | None, *, generates: bool
) -> int | None:
    """How many leading tokens `question` lets be read before a cut; `n_prefill` where it is "auto".

    "unknown": those before the question's first. "known": the whole prompt where the model generates; in a run, which reads
    nothing after its text, up to the question's last. Raises ValueError, as a sentence, where the prompt has no such place.
    """
    if question not in QUESTION:
        raise ValueError(f"question is one of {', '.join(QUESTION)}; got {question!r}")
    if question == "auto":
        return n_prefill
    if n_prefill is not None:
        raise ValueError("n_prefill and question both say what is read before the cut: give one of the two")
    if generates and question == "known":
        return len(ids)
    words = Words.of(model, list(ids))
    found = question_at(words.texts)
    if found is None:
        raise ValueError(
            f"no question is found in the prompt, so it cannot be {question}: write it as `Question: … Answer:`, end the "
            "prompt with a sentence that has a question mark, or leave question at auto"
        )
    first, end = words.groups[found[0]], found[1]
    if question == "unknown" and first == 0:
        raise ValueError(
            "the prompt begins with its question, so nothing stands before it to compress: put the text first, or leave "
            "question at auto"
        )
    if question == "known" and end == len(ids):
        raise ValueError(
            "the prompt ends with its question, and a run reads nothing after it: generate tokens, or ask for "
            "question=unknown"
        )
    return first if question == "unknown" else end
