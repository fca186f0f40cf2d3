"""Exact attention of one query over the keys that were selected for it, each KV head its own."""

from __future__ import annotations

import torch

from sparselens_kernels.dispatch import Backend, choose


def sparse_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    *,
    n_selected: torch.Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """out[h] = softmax(scale · q[h] · K[index]) · V[index], [B, H, D] in q's dtype.

    Args:
        q: [B, H, D], one query per head.
        k, v: [B, Hkv, T, D].
        index: int64 or int32 [B, Hkv, S]: the keys that each KV head's query heads read, in any order, none twice.
        n_selected: int [B, Hkv]: only the first so many of `index` count; all where None. A head without any gives nought.
        scale: of the logits, 1/√D where None.

    Raises ValueError for shapes that do not fit, and for backend="triton" where the kernel cannot take the call.
    """
    if q.ndim != 3 or k.ndim != 4 or v.shape[:3] != k.shape[:3] or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q is [batch, head, channel] and k, v [batch, KV head, token, channel], heads a multiple of KV heads; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if index.ndim != 3 or index.shape[:2] != k.shape[:2]:
        raise ValueError(f"index is [batch, KV head, selected] = {tuple(k.shape[:2])} × S; got {tuple(index.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    unsupported = "float64" if q.dtype == torch.float64 else None
    if choose(backend, q.device, unsupported) == "triton":
        from sparselens_kernels.sparse_decode import kernel

        return kernel.sparse_decode(q, k, v, index, n_selected=n_selected, scale=scale)
    from sparselens_kernels.sparse_decode import reference

    return reference.sparse_decode(q, k, v, index, n_selected=n_selected, scale=scale)
