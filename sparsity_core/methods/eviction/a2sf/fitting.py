"""A forgetting factor for each layer and KV head, fitted to the keys that the dense model's coming attention wants.

For each layer on its own, with the dense model's q, k and v and P its attention, the rule is run at every α of a grid, and
what it loses is

    lost[h](α) = Σ_q Σ_k P[h, q, k] · (q ≥ evicted_at[h, k; α])      P summed over the query heads of KV head h

the attention that later queries would have given to what is gone, of which the ideal mask loses least. Each head takes the α
of a coarse grid that loses least over all stretches of the text and cache ratios together: α enters through which key is
the lowest and has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparsity_core.kinds import per_layer
from sparsity_core.methods.eviction.a2sf.factors import Factors
from sparsity_core.models import AttentionCall, Model, calibration_text, recording, text_digest, windows
from sparsity_core.work import Progress, silent

GRID = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)


@torch.inference_mode()
def fit_factors(
    model: Model,
    text: str | None = None,
    *,
    ratios: str = "0.2, 0.4",
    blocks: int = 6,
    length: int = 1024,
    seed: int = 0,
    progress: Progress = silent,
) -> Factors:
    """The factors that lose least attention over `blocks` random stretches of a text, ours where None.

    Args:
        ratios: shares of a stretch that its cache may hold, as in 0.2, 0.4.

    Raises ValueError for ratios outside (0, 1), a text shorter than one stretch, and whatever `progress` raises to cancel.
    """
    shares = per_layer("ratios", ratios, float)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"ratios are shares of a stretch that its cache holds, above 0 and below 1; got {ratios}")
    if blocks < 1 or not 8 <= length <= model.arch.max_positions:
        raise ValueError(f"a fit takes 1 block or more of 8 to {model.arch.max_positions:,} tokens")
    text = calibration_text() if text is None else text
    budgets = [
        max(1, int(share * length + 1e-9)) for share in shares
    ]  # .29 of 100 is 29, whatever a product of floats says
    listener = _Losses(budgets, blocks * model.arch.n_layers, progress)
    for ids in windows(model, text, count=blocks, length=length, seed=seed):
        with recording(listener):
            model.hidden(ids[None], use_cache=False)
    progress(1.0, "every head has its factor")
    recipe = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": model.dtype_name,
        "text": text_digest(text),
        "ratios": shares,
        "blocks": blocks,
        "length": length,
        "seed": seed,
        "grid": list(GRID),
    }
    lost = listener.lost() / blocks
    chosen, single = best(lost), lost.mean((1, 2))  # single [ratios, grid]
    recipe |= {
        "lost": np.take_along_axis(lost, chosen[None, ..., None], 3).mean((1, 2, 3)).round(6).tolist(),
        "lost_by_best_single": single.min(1).round(6).tolist(),
        "best_single": [GRID[i] for i in single.argmin(1)],
    }
    return Factors(np.asarray(GRID)[chosen], recipe)


def best(lost: np.ndarray) -> np.ndarray:
    """int64 [L, Hkv]: the place in the grid that loses least, of `lost` [ratios, L, Hkv, grid].

    Each ratio counts by its share of what the best single factor loses at it, so that a tight cache does not decide alone.
    """
    each = lost.mean((1, 2)).min(1)  # [ratios]
    return np.asarray((lost / np.maximum(each, 1e-30)[:, None, None, None]).sum(0).argmin(-1))


def attention_lost(p: torch.Tensor, evicted_at: torch.Tensor) -> torch.Tensor:
    """[…, Hkv]: of the dense attention p [Hkv, T, T], that of queries to keys evicted by then; `evicted_at` […, Hkv, T]."""
    from_query = p.flip(1).cumsum(1).flip(1)
    after = torch.nn.functional.pad(from_query, (0, 0, 0, 1))  # [Hkv, T + 1, key]: what queries from q on give
    at = evicted_at.long().clamp_max(p.shape[1])
    return after.expand(*at.shape[:-2], -1, -1, -1).gather(-2, at[..., None, :])[..., 0, :].sum(-1)


class _Losses:
    """A recorder of the dense pass that runs the rule at every α beside it, layer by layer."""

    def __init__(self, budgets: Sequence[int], calls: int, progress: Progress) -> None:
        self._budgets, self._calls, self._done, self._progress = budgets, calls, 0, progress
        self._sums: dict[int, np.ndarray] = {}

    def attend(self, call: AttentionCall) -> torch.Tensor:
        from sparselens_kernels import causal_rows, evict_scan

        self._progress(self._done / self._calls, f"fitting, layer {call.layer + 1}")
        self._done += 1
        q, k, v = call.q, call.k, call.v
        group, n = q.shape[1] // call.n_kv, call.n_keys
        out = q.new_empty(*q.shape[:3], v.shape[3])
        p = torch.zeros(call.n_kv, n, n, device=q.device)
        for tile in causal_rows(q, k, **call.how):
            own = slice(tile.heads.start * group, tile.heads.stop * group)
            p[tile.heads, tile.start : tile.end, : tile.end] = tile.probabilities()[0].sum(1)
            out[:, own, tile.start : tile.end] = tile.attend(v)
        scans = [
            [evict_scan(q, k, v, budget=b, decay=a, **call.how).evicted_at[0] for a in GRID] for b in self._budgets
        ]
        lost = attention_lost(p, torch.stack([torch.stack(each) for each in scans]))  # [ratios, grid, Hkv]
        found = lost.transpose(1, 2).double().cpu().numpy() / (group * n)
        self._sums[call.layer] = self._sums.get(call.layer, 0.0) + found
        return out

    def lost(self) -> np.ndarray:
        """float64 [ratios, L, Hkv, grid]: a query head's share of its attention, summed over the stretches."""
        return np.stack([self._sums[i] for i in sorted(self._sums)], axis=1)
