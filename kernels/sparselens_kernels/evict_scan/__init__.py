"""Streaming eviction of a whole prompt: A2SF, H2O, TOVA, StreamingLLM and the local window are this with other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sparselens_kernels.dispatch import Backend, check_attention_shapes, check_scoring, choose, per_key
from sparselens_kernels.evict_scan.memory import Memory as Memory
from sparselens_kernels.masks import KeyMask


class EvictScan(NamedTuple):
    out: torch.Tensor  # [B, H, Tq, D], q's dtype
    evicted_at: torch.Tensor  # int32 [B, Hkv, Tk]: the first query position that no longer sees the key; NEVER: none
    score: torch.Tensor  # [B, Hkv, Tk], float32 (float64 for float64 inputs), after the last query; nan where evicted
    threshold: torch.Tensor  # [B, Hkv, Tq]: the score of the key that the query dropped; nan where no score decided
    snapshots: torch.Tensor  # [B, Hkv, len(snapshot_steps), Tk]: score after these queries; nan where not kept
    backend: str  # "reference" or "triton"
    memory: Memory | None = None  # of all that was evicted, where one was given


def evict_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: int | Sequence[int],
    decay: float | torch.Tensor = 1.0,
    n_sink: int = 0,
    recent: int = 0,
    scored: bool = True,
    weight: torch.Tensor | None = None,
    initial: float | torch.Tensor = 0.0,
    reduction: str = "sum",
    shared: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    sink_q: torch.Tensor | None = None,
    until: torch.Tensor | None = None,
    protected: torch.Tensor | None = None,
    mask: KeyMask | None = None,
    positions: torch.Tensor | None = None,
    score: torch.Tensor | None = None,
    start: int | None = None,
    snapshot_steps: Sequence[int] = (),
    memory: Memory | None = None,
    backend: Backend = "auto",
) -> EvictScan:
    """Causal attention over a cache that never holds more than `budget` keys per KV head.

    For each query in turn, with K the keys still kept and the query's own:

        P = softmax(q · K / √D)                  renormalised over K
        score = decay · score + weight · R_g P   for every key in K
        if |K| > budget: drop the lowest score outside the first `n_sink` and the last `recent` keys, for good

    where R is `reduction` over the G query heads of a KV head; the oldest goes where scores tie. The scan is that of
    A2SF (arXiv 2407.20485), H2O (2306.14048), TOVA (2401.06104) and StreamingLLM (2309.17453).

    Args:
        q: [B, H, Tq, D].
        k, v: [B, Hkv, Tk, D]: a cache of Tk − Tq keys, in order of position, then the queries' own. Heads that hold fewer
            than others begin with empty slots.
        budget: one number, or one per KV head.
        decay: the forgetting factor in [0, 1]; a number, or a tensor that broadcasts to [B, Hkv, Tk].
        scored: False leaves every score at its `initial` value; a scored key arrives with nought.
        shared: all KV heads choose together, by the mean of weight · R_g P over them; they then hold the same keys.
        weight, initial: broadcast to [B, Hkv, Tk]; `weight` multiplies what a key is attended.
        sink_q: [B, H, Tq, D], the queries as the first `n_sink` keys see them (StreamingLLM's re-rotation); q where None.
        until: int32 [B, 1 or Hkv, Tk], the query position from which on a key is hidden, by a gate or a rule; its slot is
            the first to go when one is needed.
        protected: bool [B, 1 or Hkv, Tk], keys that never go; where little else is left, the oldest recent one does.
        mask: the keys that each query may see, by position; its own key always.
        positions, score: int64 and float [B, Hkv, Tk − Tq], the state of the cached keys; needed where Tk > Tq. An empty
            slot has position −1: no query sees it, and its `evicted_at` is 0.
        start: the position of the first query, Tk − Tq where None (a cache that has lost nothing).
        scale: of the logits, 1/√D where None. `softcap` and `window` as the model's own attention has them.
        snapshot_steps: queries (0 … Tq − 1) after which the score is copied out.
        memory: what was evicted before the first query; those that follow read its mean key and value too, as c keys where c
            were evicted (its logit and log c), and it takes in what they drop. What was hidden already does not enter.

    Raises ValueError for numbers or shapes that do not fit, and for backend="triton" where it cannot take the call.
    """
    check_attention_shapes(q, k, v)
    check_scoring(reduction, decay, window, snapshot_steps, q.shape[2])
    budgets = _of_each_head(budget, k.shape[1])
    if n_sink < 0 or recent < 0 or n_sink + recent > min(budgets):
        raise ValueError(f"n_sink + recent is between 0 and the budget of {min(budgets)}; got {n_sink} + {recent}")
    n_past = k.shape[2] - q.shape[2]
    if scored and (isinstance(initial, torch.Tensor) or initial != 0.0):
        raise ValueError("a scored key arrives with a score of 0: an initial score needs scored=False")
    if n_past and (positions is None or score is None or start is None):
        raise ValueError("a call with cached keys needs their positions, their score and the start position")
    if positions is None or score is None:
        positions = torch.zeros(*k.shape[:2], 0, dtype=torch.int64, device=k.device)
        score = torch.zeros(*k.shape[:2], 0, dtype=torch.float32, device=k.device)
    _check_held(positions, budgets)
    if shared and len(set(budgets)) > 1:
        raise ValueError(f"heads that choose together have one budget; got {', '.join(map(str, budgets))}")
    start = n_past if start is None else start
    unsupported = None
    if until is not None or protected is not None:
        unsupported = "hidden or protected keys"
    elif shared:
        unsupported = "heads that choose together"
    elif memory is not None:
        unsupported = "a memory of what was evicted"
    elif q.dtype == torch.float64:
        unsupported = "float64"
    chosen = choose(backend, q.device, unsupported)
    numbers: dict[str, Any] = {
        "budget": budgets,
        "decay": per_key(decay, k),
        "n_sink": n_sink,
        "recent": recent,
        "scored": scored,
        "weight": None if weight is None else per_key(weight, k),
        "initial": per_key(initial, k),
        "reduction": reduction,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "positions": positions,
        "score": score,
        "start": start,
        "snapshot_steps": snapshot_steps,
        "softcap": softcap,
        "window": window,
        "sink_q": sink_q,
        "mask": mask,
    }
    if chosen == "triton":
        from sparselens_kernels.evict_scan import kernel

        return EvictScan(*kernel.evict_scan(q, k, v, **numbers), chosen)
    own: dict[str, Any] = {"until": until, "protected": protected, "shared": shared}
    if q.shape[2] == 1 and q.device.type == "cpu" and sink_q is None and mask is None and memory is None:
        from sparselens_kernels.evict_scan import one_query

        del numbers["sink_q"], numbers["mask"]
        return EvictScan(*one_query.evict_scan(q, k, v, **numbers, **own), chosen)
    from sparselens_kernels.evict_scan import reference, walk_cpu

    own |= {"memory": memory, "walk": walk_cpu.walk}
    out, evicted_at, final, threshold, snapshots, left = reference.evict_scan(q, k, v, **numbers, **own)
    return EvictScan(out, evicted_at, final, threshold, snapshots, chosen, left)


def _of_each_head(budget: int | Sequence[int], n_kv: int) -> tuple[int, ...]:
    """The budget of each KV head. Raises ValueError for numbers that are no budgets."""
    budgets = tuple(budget) if isinstance(budget, Sequence) else (budget,) * n_kv
    if len(budgets) != n_kv:
        raise ValueError(f"budget is one number, or one for each of {n_kv} KV heads; got {len(budgets)}")
    if min(budgets) < 1:
        raise ValueError(f"budget is at least 1 key; got {min(budgets)}")
    return budgets


def _check_held(positions: torch.Tensor, budgets: tuple[int, ...]) -> None:
    """Raises ValueError where a head's cache holds more than its budget; slots are not counted where all would fit."""
    if positions.shape[2] <= min(budgets):
        return
    held = (positions >= 0).sum(2).amax(0).tolist()
    for n, budget in zip(held, budgets, strict=True):
        if n > budget:
            raise ValueError(f"the cache holds {n} keys, more than the budget of {budget}")
