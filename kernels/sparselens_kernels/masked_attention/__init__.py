"""Causal attention of a prompt whose queries see some of the earlier keys, computed over those alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from sparselens_kernels.device import takes_triton
from sparselens_kernels.dispatch import check_attention_shapes
from sparselens_kernels.masks import KeyMask


class MaskedAttention(NamedTuple):
    out: torch.Tensor  # [B, H, T, Dv], q's dtype
    pairs: int  # (query head, query, key) products that were computed, those hidden within a block included
    backend: str  # "gathered" or "flex"


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: KeyMask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    until: torch.Tensor | None = None,
    backend: Literal["auto", "gathered", "flex"] = "auto",
) -> MaskedAttention:
    """Softmax attention of every query over the keys that `mask` shows it.

        out[q] = Σ_{k ≤ q, mask[q, k]} softmax(q · k / √D) v[k]

    "gathered" takes for a block of queries the keys that any of them sees; the cost is the sum of these keys, not T².
    "flex" is PyTorch's FlexAttention, which skips the blocks of 128 × 128 that no query sees. Automatically it is "flex" on
    CUDA where every term of the mask lies in blocks or windows, and "gathered" elsewhere: keys that lie scattered touch
    every block.

    Args:
        q: [1, H, T, D]; k, v: [1, Hkv, T, D].
        scale: of the logits, 1/√D where None. `softcap` and `window` as the model's own attention has them.
        until: int32 [1, 1 or Hkv, T]: the first query that no longer sees a key.

    Raises ValueError for shapes that do not fit, and for an unknown backend.
    """
    check_attention_shapes(q, k, v)
    if q.shape[0] != 1 or q.shape[2] != k.shape[2] or mask.n_tokens != q.shape[2]:
        raise ValueError(
            f"a masked prompt is one text, all of whose tokens are queries; got {q.shape[0]} texts, {q.shape[2]} queries, "
            f"{k.shape[2]} keys and a mask of {mask.n_tokens}"
        )
    if mask.lists not in (k.shape[1], q.shape[1]):
        raise ValueError(
            f"a mask has a list per KV head or per query head ({k.shape[1]}, {q.shape[1]}); got {mask.lists}"
        )
    if backend not in ("auto", "gathered", "flex"):
        raise ValueError(f"backend is auto, gathered or flex; got {backend!r}")
    if backend == "auto":
        backend = "flex" if mask.in_blocks and takes_triton(q.device) else "gathered"
    if backend == "flex":
        from sparselens_kernels.masked_attention.flex import masked_attention as attend
    else:
        from sparselens_kernels.masked_attention.reference import masked_attention as attend

    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, pairs = attend(q, k, v, mask, scale=scale, softcap=softcap, window=window, until=until)
    return MaskedAttention(out, pairs, backend)
