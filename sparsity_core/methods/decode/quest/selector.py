"""Quest's scores: bounds of pages of keys."""

from __future__ import annotations

import torch
from sparselens_kernels import reduce_group

from sparsity_core.kinds import ALL_HEADS, Selector

_LEAST_PAGES = 3  # as the authors' evaluation has it


class PageSelector(Selector):
    """Quest: an upper bound of any logit in a page of keys, from the page's extremes (arXiv 2406.10774).

    b = Σ_c max(q_c · min_c, q_c · max_c). The page that is being filled is always read, and of the others whole ones.
    """

    def __init__(self, page: int, reduction: str) -> None:
        self._page, self._reduction = page, reduction
        self._bytes = 0

    def append(self, k: torch.Tensor) -> None:
        self._bytes += 2 * k.nbytes // self._page

    def keep(self, columns: torch.Tensor) -> None:
        raise ValueError("pages of keys cannot be combined with an eviction method: choose another decode method")

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
        n_kv, n = k.shape[1:3]
        whole = n // self._page
        pages = k[:, :, : whole * self._page].float().view(batch, n_kv, whole, self._page, dim)
        low, high = pages.amin(3).transpose(-1, -2)[:, :, None], pages.amax(3).transpose(-1, -2)[:, :, None]
        grouped = q.float().view(batch, n_kv, -1, rows, dim)
        bound = grouped.clamp_min(0) @ high + grouped.clamp_max(0) @ low  # [B, Hkv, G, R, pages]
        query = n - rows + torch.arange(rows, device=q.device)[:, None]
        if self._reduction != "none":
            past = torch.arange(whole, device=q.device) < query // self._page
            shares = (bound * scale).masked_fill(~past, torch.finfo(bound.dtype).min).softmax(-1)
            bound = reduce_group(shares, self._reduction)[:, :, None]
        # A page's rank and then the place in it, so that no two keys tie and a page is read from its beginning.
        rank = bound.argsort(dim=-1, stable=True).argsort(-1)
        place = torch.arange(self._page, device=q.device)
        ordered = (rank[..., None] * self._page + (self._page - 1 - place)).flatten(-2).float()
        found = torch.nn.functional.pad(ordered, (0, n - whole * self._page))
        key = torch.arange(n, device=q.device)
        filling = key >= (query // self._page) * self._page
        return torch.where(filling, (n + key).float(), found)  # above every whole page, the newest first

    def count(self, share: float, n: torch.Tensor) -> torch.Tensor:
        """The share of the pages, rounded up, at least three: the one that is being filled, and whole ones."""
        pages = (share * n.double() / self._page - 1e-9).ceil().clamp_min(_LEAST_PAGES).long()
        return torch.minimum((pages - 1) * self._page + (n - 1) % self._page + 1, n)

    @property
    def nbytes(self) -> int:
        return self._bytes
