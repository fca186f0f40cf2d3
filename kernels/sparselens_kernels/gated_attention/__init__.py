"""Attention behind a learned gate: a later token drops an earlier one for good (dynamic context pruning)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparselens_kernels.dispatch import Backend, check_attention_shapes, choose


class GatedAttention(NamedTuple):
    out: torch.Tensor  # [B, H, Tq, D], q's dtype
    dropped_at: torch.Tensor  # int32 [B, Tk]: the first query position that no longer sees the key; NEVER: none
    backend: str  # "reference" or "triton"


def gate_drops(
    gate_q: torch.Tensor,
    gate_k: torch.Tensor,
    *,
    bias: float = 0.0,
    start: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """int32 [B, Tk]: the first query position n > k with gate_q[n] · gate_k[k] + bias ≤ 0, which drops key k; NEVER: none.

    Dynamic context pruning at a = ∞ (arXiv 2305.15805), shared by all heads of a layer; O(T) memory.

    Args:
        gate_q: [B, Tq, r], already divided by √r.
        gate_k: [B, Tk, r]: the keys of a cache that are still kept, then the queries' own.
        start: the position of the first query, Tk − Tq where None (a cache that has lost nothing).

    Raises ValueError for shapes that do not fit, and for backend="triton" where it cannot take the call.
    """
    if gate_q.ndim != 3 or gate_k.ndim != 3 or gate_q.shape[::2] != gate_k.shape[::2]:
        raise ValueError(
            f"gate_q and gate_k are [batch, token, r] with equal batch and r; got {tuple(gate_q.shape)} and "
            f"{tuple(gate_k.shape)}"
        )
    if gate_k.shape[1] < gate_q.shape[1]:
        raise ValueError(f"there are at least as many keys as queries; got {gate_k.shape[1]} and {gate_q.shape[1]}")
    unsupported = "float64" if gate_q.dtype == torch.float64 else None
    chosen = choose(backend, gate_q.device, unsupported)
    start = gate_k.shape[1] - gate_q.shape[1] if start is None else start
    if chosen == "triton":
        from sparselens_kernels.gated_attention import kernel

        return kernel.gate_drops(gate_q, gate_k, bias, start)
    from sparselens_kernels.gated_attention import reference

    return reference.gate_drops(gate_q, gate_k, bias, start)


def gated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate_q: torch.Tensor,
    gate_k: torch.Tensor,
    *,
    bias: float = 0.0,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    first_key: torch.Tensor | None = None,
    backend: Backend = "auto",
) -> GatedAttention:
    """Causal attention in which query n sees key k unless one of the queries k + 1 … n dropped it; O(T) memory.

    Args:
        q: [B, H, Tq, D], the last Tq of the Tk positions; k, v: [B, Hkv, Tk, D].
        gate_q, gate_k, bias: as `gate_drops` has them, over the same tokens.
        first_key: int [B], the first real token of each row under left padding, which no real query sees.
        scale: of the logits, 1/√D where None. `softcap` and `window` as the model's own attention has them.

    Raises ValueError as `gate_drops` does.
    """
    check_attention_shapes(q, k, v)
    if gate_q.shape[:2] != (q.shape[0], q.shape[2]) or gate_k.shape[:2] != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"the gate reads the tokens of q and k; got {tuple(gate_q.shape)} beside {tuple(q.shape)} and "
            f"{tuple(gate_k.shape)} beside {tuple(k.shape)}"
        )
    unsupported = None
    if softcap is not None:
        unsupported = "logit soft-capping"
    elif window is not None:
        unsupported = "a sliding-window layer"
    elif q.dtype == torch.float64:
        unsupported = "float64"
    chosen = choose(backend, q.device, unsupported)
    dropped_at = gate_drops(gate_q, gate_k, bias=bias, backend=chosen)
    if first_key is not None:
        padding = torch.arange(k.shape[2], device=k.device) < first_key[:, None]
        dropped_at = torch.where(padding, dropped_at.minimum(first_key[:, None].int()), dropped_at)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "triton":
        from sparselens_kernels.gated_attention import kernel

        out = kernel.attention(q, k, v, dropped_at, scale=scale)
    else:
        from sparselens_kernels.gated_attention import reference

        out = reference.attention(q, k, v, dropped_at, scale=scale, softcap=softcap, window=window)
    return GatedAttention(out, dropped_at, chosen)
