"""What the Compare page asks of the model: one query's dense attention, and losses on many passages, as jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsity_core.record import RunSpec
from sparsity_core.work import Progress

if TYPE_CHECKING:
    import numpy as np


def query_attention(spec: RunSpec, ids: tuple[int, ...], progress: Progress) -> np.ndarray:
    """The dense model's attention [L, H, T] of the last of these tokens, in every layer and head."""
    from sparsity_core.models import load
    from sparsity_core.studies import attention_of_last

    progress(0.0, f"loading {spec.model}")
    return attention_of_last(load(spec.model, device=spec.device, dtype=spec.dtype), ids, progress)


def losses(spec: RunSpec, passages: int, length: int, progress: Progress) -> np.ndarray:
    """The mean −log p [passages] of a spec's pipeline on each of the first passages of the evaluation text."""
    from sparsity_core.evaluate import passage_losses
    from sparsity_core.models import evaluation_text, load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return passage_losses(
        model, evaluation_text(), spec.pipeline, passages=passages, length=length, seed=spec.seed, progress=progress
    )
