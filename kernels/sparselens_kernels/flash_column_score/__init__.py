"""Attention that also returns how much each key was attended to: the prefill scores of SnapKV and A2SF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch

from sparselens_kernels.dispatch import Backend, check_attention_shapes, check_scoring, choose, per_key
from sparselens_kernels.masks import KeyMask


class ColumnScore(NamedTuple):
    out: torch.Tensor  # [B, H, Tq, D], q's dtype
    score: torch.Tensor  # [B, Hkv, Tk], float32 (float64 for float64 inputs)
    snapshots: torch.Tensor  # [B, Hkv, len(snapshot_steps), Tk]; nan where the key did not exist yet
    backend: str  # "reference" or "triton"


def flash_column_score(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: float | torch.Tensor = 1.0,
    first_query: int = 0,
    reduction: str = "sum",
    weight: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    until: torch.Tensor | None = None,
    mask: KeyMask | None = None,
    snapshot_steps: Sequence[int] = (),
    backend: Backend = "auto",
) -> ColumnScore:
    """Causal attention in O(T) memory that also returns the decayed column sums of its probabilities.

        score[k] = weight[k] · Σ_{q ≥ first_query} decay^(Tq − 1 − q) · R_g P[g, q, k]

    where R is `reduction` over the G query heads of a KV head (arXiv 2407.20485 for the decay, 2404.14469 for a window
    of last queries).

    Args:
        q: [B, H, Tq, D]; the queries are the last Tq of the Tk positions.
        k, v: [B, Hkv, Tk, D].
        decay: the forgetting factor in [0, 1]; a number, or a tensor that broadcasts to [B, Hkv, Tk].
        first_query: earlier queries attend but do not score.
        weight: broadcasts to [B, Hkv, Tk], for example the norms of the values.
        scale: of the logits, 1/√D where None. `softcap` and `window` as the model's own attention has them.
        until: int32 [B, 1 or Hkv, Tk]: the first query (by its position, past + q) that no longer sees a key, at least the
            one after its own.
        mask: the keys that each query may see, where all tokens are queries.
        snapshot_steps: queries after which the score is copied out.

    Raises ValueError for shapes that do not fit, and for backend="triton" where the kernel cannot take the call.
    """
    check_attention_shapes(q, k, v)
    check_scoring(reduction, decay, window, snapshot_steps, q.shape[2])
    unsupported = None
    if softcap is not None:
        unsupported = "logit soft-capping"
    elif window is not None:
        unsupported = "a sliding-window layer"
    elif mask is not None:
        unsupported = "a mask of keys"
    elif len(snapshot_steps):
        unsupported = "score snapshots"
    elif reduction == "max":
        unsupported = "reduction='max'"
    elif q.dtype == torch.float64:
        unsupported = "float64"
    chosen = choose(backend, q.device, unsupported)
    decay = per_key(decay, k)
    weight = weight if weight is None else cast(torch.Tensor, per_key(weight, k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "triton":
        from sparselens_kernels.flash_column_score import kernel

        out, score = kernel.flash_column_score(
            q, k, v, decay=decay, first_query=first_query, reduction=reduction, weight=weight, scale=scale,
            until=until,
        )  # fmt: skip
        snapshots = score.new_empty(*score.shape[:2], 0, score.shape[2])
    else:
        from sparselens_kernels.flash_column_score import reference

        out, score, snapshots = reference.flash_column_score(
            q,
            k,
            v,
            decay=decay,
            first_query=first_query,
            reduction=reduction,
            weight=weight,
            scale=scale,
            softcap=softcap,
            window=window,
            until=until,
            mask=mask,
            snapshot_steps=snapshot_steps,
        )
    return ColumnScore(out, score, snapshots, chosen)
