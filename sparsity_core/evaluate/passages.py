"""The losses of a pipeline on many passages of a text, each a unit of a paired test."""

from __future__ import annotations

import numpy as np

from sparsity_core.inference import pipeline_of, run, whole
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model, check_losses
from sparsity_core.work import Progress, silent


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
    chosen = pipeline_of(pipeline)
    if chosen.prefill is not None and chosen.prefill.looks_ahead:
        raise ValueError(
            f"{chosen.prefill.name} looks ahead, so a passage has no loss under it: choose a causal method"
        )
    passages, length = whole("passages", passages), whole("length", length)
    ids = model.encode_all(text)
    if passages < 1 or length < 4 or passages * length > len(ids):
        raise ValueError(
            f"the text has {len(ids):,} tokens: ask for at least 1 passage of at least 4 tokens, and no more than fit; got "
            f"{passages:,} of {length:,}"
        )
    found = np.zeros(passages)
    for at in range(passages):
        progress(at / passages, f"passage {at + 1} of {passages}")
        part = ids[at * length : (at + 1) * length]
        nll = run(model, part, chosen, seed=seed, snapshots=0, against_dense=False).nll
        check_losses(nll, model.name, at * length)
        found[at] = float(nll[length // 2 : -1].astype(np.float64).mean())
    return found
