"""Twilight's second choice: top-p over what another selector chose."""

from __future__ import annotations

import torch

from sparsity_core.attention import ExactSelector, best_keys
from sparsity_core.kinds import ALL_HEADS, Selector
from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector


class TopPSelector(Selector):
    """Scores the keys that `base` chooses by their attention among themselves, estimated from keys in few bits; others 0."""

    by_scores = True

    def __init__(self, base: Selector, share: float, mass: float, dtype: str) -> None:
        self._base, self._share, self._dtype = base, share, dtype
        self._fewest = ExactSelector(mass=mass)
        self._keys: LabelSelector | None = None  # of all channels

    def append(self, k: torch.Tensor) -> None:
        if self._keys is None:
            every = torch.arange(k.shape[3], device=k.device).expand(k.shape[1], -1)
            self._keys = LabelSelector(every, self._dtype, "softmax")
        self._base.append(k)
        self._keys.append(k)

    def keep(self, columns: torch.Tensor) -> None:
        self._base.keep(columns)
        if self._keys is not None:
            self._keys.keep(columns)

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = ALL_HEADS,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self._keys is None:
            raise RuntimeError("no key has entered the cache")
        n_kv, n, rows = k.shape[1], k.shape[2], q.shape[2]
        if visible is None:
            past = torch.arange(n, device=q.device) <= torch.arange(n - rows, n, device=q.device)[:, None]
            visible = past.expand(n_kv, -1, -1)
        found = self._base.scores(q, k, scale=scale, heads=heads, visible=visible)[0]
        count = self._base.count(self._share, visible.sum(-1))[:, None].expand(found.shape[:3])
        chosen = best_keys(found.masked_fill(~visible[:, None], float("-inf")), count).any(1) & visible
        return self._keys.scores(q, k, scale=scale, heads=heads, visible=chosen)

    def count_by(self, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return self._fewest.count_by(scores, visible)

    @property
    def nbytes(self) -> int:
        return self._base.nbytes + (0 if self._keys is None else self._keys.nbytes)
