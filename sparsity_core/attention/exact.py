"""The exact attention of a query as what ranks its keys: the oracle that no cheaper score can beat."""

from __future__ import annotations

import torch
from sparselens_kernels import reduce_group

from sparsity_core.attention.selection import spread_visible
from sparsity_core.kinds import ALL_HEADS, Selector

_ROUNDING = 1e-6  # of a query's attention


class ExactSelector(Selector):
    """Ranks by p = softmax(q·K/√D), summed over the query heads of a KV head; reads `keys` of them, or the share `mass`.

    A soft cap of the model's logits is not applied: it keeps each query head's order, not always that of their sum.
    """

    nbytes, by_scores = 0, True

    def __init__(self, *, keys: int | None = None, mass: float = 1.0) -> None:
        self._keys, self._mass = keys, mass

    def append(self, k: torch.Tensor) -> None:
        pass

    def keep(self, columns: torch.Tensor) -> None:
        pass

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = ALL_HEADS,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        grouped = q.float().unflatten(1, (k.shape[1], -1))
        logits = grouped @ k.float().mT[:, :, None] * scale
        if visible is not None:
            logits = logits.masked_fill(~spread_visible(visible, k.shape[1])[:, None], float("-inf"))
        return reduce_group(torch.softmax(logits, dim=-1), "sum")[:, :, None]

    def count_by(self, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        n = visible.sum(-1)
        if self._keys is not None:
            return n.clamp_max(self._keys)
        shares = scores.masked_fill(~visible, 0.0).sort(dim=-1, descending=True).values
        before = shares.cumsum(-1) - shares
        needed = (before < self._mass * shares.sum(-1, keepdim=True) * (1 - _ROUNDING)).sum(-1)
        return torch.minimum(needed.clamp_min(1), n)
