"""SparQ's scores: each query's own largest channels."""

from __future__ import annotations

import torch
from sparselens_kernels import reduce_group

from sparsity_core.attention import spread_visible
from sparsity_core.kinds import ALL_HEADS, Selector


class QuerySelector(Selector):
    """SparQ: the channels in which each query itself is largest, no index kept (arXiv 2312.04985).

    s = softmax(q_r · K / √(D · ‖q_r‖₁ / ‖q‖₁)), summed over the query heads of a KV head.
    """

    nbytes = 0

    def __init__(self, channels: int, reduction: str, shared: bool = False) -> None:
        self._n, self._reduction, self._shared = channels, reduction, shared

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
        batch, _, rows, dim = q.shape
        size = q.float().abs()
        ranked = size
        if self._shared:
            groups = size.view(batch, k.shape[1], -1, rows, dim)
            ranked = groups.sum(2, keepdim=True).expand_as(groups).reshape(size.shape)
        top = ranked.topk(min(self._n, dim), dim=-1).indices
        part = torch.zeros_like(size).scatter_(3, top, q.float().gather(3, top))
        share = part.abs().sum(-1, keepdim=True) / size.sum(-1, keepdim=True).clamp_min(1e-20)
        part = part / (dim * share).clamp_min(1e-20).sqrt()
        logits = part.view(batch, k.shape[1], -1, rows, dim) @ k.float().transpose(-1, -2)[:, :, None]
        if visible is not None:
            logits = logits.masked_fill(~spread_visible(visible, k.shape[1])[:, None], float("-inf"))
        p = torch.softmax(logits, dim=-1)
        return reduce_group(p, self._reduction)[:, :, None]
