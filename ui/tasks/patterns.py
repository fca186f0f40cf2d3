"""A look at a layer's dense attention, as a job."""

from __future__ import annotations

from sparsity_core.record import RunSpec
from sparsity_core.studies import AttentionLook
from sparsity_core.work import Progress


def look(spec: RunSpec, ids: tuple[int, ...], layer: int, block: int, progress: Progress) -> AttentionLook:
    from sparsity_core.models import load
    from sparsity_core.studies import look_at_attention

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return look_at_attention(model, ids, layer, block, progress)
