"""A pipeline on many texts, each a unit of a paired test or of a band: passages of one text, or texts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from sparsity_core.inference import pipeline_of, run, whole
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model
from sparsity_core.record import Trace
from sparsity_core.work import Progress, silent

T = TypeVar("T")
LEAST_TOKENS = 4  # of a text whose later half is measured


def over_texts(
    model: Model,
    texts: Sequence[str | Sequence[int]],
    measure: Callable[[Trace], T],
    pipeline: Pipeline | str | None = None,
    *,
    seed: int = 0,
    add_bos: str = "auto",
    against_dense: bool = True,
    progress: Progress = silent,
) -> list[T]:
    """What `measure` makes of each text's run, which every stage prunes from its beginning; the traces are not kept.

    For example `over_texts(model, read_texts("prompts.jsonl"), profile_of, "eviction=h2o(budget=64)")`.

    Args:
        texts: texts, or their token ids.
        others: as in `run`.

    Raises ValueError, with its place, for a text that is too short or too long, for a method that looks ahead, and whatever
    `run` refuses.
    """
    chosen = pipeline_of(pipeline)
    if chosen.prefill is not None and chosen.prefill.looks_ahead:
        raise ValueError(
            f"{chosen.prefill.name} looks ahead, so a passage has no loss under it: choose a causal method"
        )
    read = [_ids(model, text, add_bos, place) for place, text in enumerate(texts, 1)]
    total, done, found = sum(map(len, read)), 0, list[T]()
    for at, ids in enumerate(read, 1):
        told = partial(_tell, progress, f"text {at} of {len(read)}", done / total, len(ids) / total)
        trace = run(model, ids, chosen, seed=seed, snapshots=0, against_dense=against_dense, progress=told)
        found.append(measure(trace))
        done += len(ids)
    return found


def _tell(progress: Progress, which: str, before: float, own: float, share: float, doing: str) -> None:
    progress(before + own * share, f"{which}: {doing}")


def _ids(model: Model, text: str | Sequence[int], add_bos: str, place: int) -> list[int]:
    try:
        ids = model.encode(text, add_bos) if isinstance(text, str) else list(text)
    except ValueError as error:
        raise ValueError(f"text {place}: {error}") from None
    if len(ids) < LEAST_TOKENS:
        raise ValueError(f"text {place} has {len(ids)} tokens: give texts of at least {LEAST_TOKENS}")
    return ids


def passages_of(model: Model, text: str, passages: int, length: int) -> list[list[int]]:
    """The token ids of the first passages of a text. Raises ValueError for a text with fewer tokens."""
    passages, length = whole("passages", passages), whole("length", length)
    ids = model.encode_all(text)
    if passages < 1 or length < LEAST_TOKENS or passages * length > len(ids):
        raise ValueError(
            f"the text has {len(ids):,} tokens: ask for at least 1 passage of at least {LEAST_TOKENS} tokens, and no more than "
            f"fit; got {passages:,} of {length:,}"
        )
    return [ids[at * length : (at + 1) * length] for at in range(passages)]


def passage_losses(
    model: Model,
    text: str,
    pipeline: Pipeline | str | None = None,
    *,
    passages: int = 16,
    length: int = 192,
    seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray:
    """float64 [passages]: the mean −log p of each of the first passages of `length` tokens, a run of its own each.

    Every stage prunes every query of a passage. A method of one cut has read half of it, so that only the other half is
    measured; of all methods alike, so that their losses are of the same tokens.

    Raises ValueError for a text with fewer tokens, a method that looks ahead, and whatever `run` refuses.
    """
    read = passages_of(model, text, passages, length)
    return np.asarray(over_texts(model, read, later_loss, pipeline, seed=seed, against_dense=False, progress=progress))


def later_loss(trace: Trace) -> float:
    """The mean −log p of the tokens of a text's later half, which a method of one cut has pruned."""
    return float(trace.nll[trace.n_tokens // 2 : -1].astype(np.float64).mean())
