"""Which implementation of an operation runs, and the argument checks that all operations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from sparselens_kernels.device import takes_triton

Backend = Literal["auto", "reference", "triton"]
BACKENDS = ("auto", "reference", "triton")
REDUCTIONS = ("sum", "mean", "max")
LATE = 1e30  # above any score, of a key that goes only where there is no other
NEVER = 2**31 - 1  # of a key that no query drops; not the length: a key that the last query drops is gone too


def choose(backend: Backend, device: torch.device, unsupported: str | None) -> Literal["reference", "triton"]:
    """The backend to run: `auto` takes Triton on a card that it compiles for where the call is supported, else the reference.

    `unsupported` says why Triton cannot take this call, or None. Asking for Triton where it cannot run raises.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "reference":
        return "reference"
    if backend == "auto":
        return "triton" if unsupported is None and takes_triton(device) else "reference"
    if unsupported is not None:
        raise ValueError(f"the Triton kernel cannot run this call: {unsupported}. Use backend='reference'")
    return "triton"


def check_attention_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """q [B, H, Tq, D] against k, v [B, Hkv, Tk, D] with Tk ≥ Tq and H a multiple of Hkv."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"q, k and v are [batch, head, token, channel]; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v agree in batch, head and token; got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k agree in batch and channel; got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"query heads are a multiple of KV heads; got {q.shape[1]} and {k.shape[1]}")
    if k.shape[2] < q.shape[2]:
        raise ValueError(f"there are at least as many keys as queries; got {k.shape[2]} and {q.shape[2]}")


def per_key(values: float | torch.Tensor, k: torch.Tensor) -> float | torch.Tensor:
    """A number, or a tensor that broadcasts to [B, Hkv, Tk] with its three axes spelled out, in the accumulator's dtype.

    Raises ValueError where it does not broadcast.
    """
    if not isinstance(values, torch.Tensor):
        return float(values)
    dtype = torch.promote_types(k.dtype, torch.float32)
    try:
        torch.broadcast_shapes(values.shape, k.shape[:3])
    except RuntimeError:
        raise ValueError(
            f"a value per key broadcasts to [batch, head, key] = {tuple(k.shape[:3])}; got {tuple(values.shape)}"
        ) from None
    return values.to(k.device, dtype)[(None,) * (3 - values.ndim)]


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction over a KV head's query heads is one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def check_scoring(
    reduction: str, decay: float | torch.Tensor, window: int | None, snapshot_steps: Sequence[int], n_queries: int
) -> None:
    """What every operation that sums attention by column asks of its numbers; a tensor's are not looked at."""
    check_reduction(reduction)
    if not isinstance(decay, torch.Tensor) and not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay, the forgetting factor, lies between 0 and 1; got {decay}")
    if window is not None and window < 1:
        raise ValueError(f"a window holds at least the query's own key; got {window}")
    if len(set(snapshot_steps)) < len(snapshot_steps) or any(not 0 <= step < n_queries for step in snapshot_steps):
        raise ValueError(f"snapshot_steps are different queries, 0 to {n_queries - 1}; got {list(snapshot_steps)}")
