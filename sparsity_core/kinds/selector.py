"""What ranks the cached keys for a query of the decode stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALL_HEADS = slice(None)
_ROUNDING = 1e-9  # 0.07 of 100 keys is 7, whatever a product of floats says


class Selector(ABC):
    """One layer's index of the cache. Axes: B batch, Hkv KV heads, G query heads each, R queries, C keys.

    A selector lives as long as one layer of one run. It sees each key once, when it enters the cache.
    """

    rerank: int = 0  # tokens from one ranking of the channels to the next; 0: the first one stays
    by_scores: bool = False  # whether `count_by` says how many keys a query reads, in place of `count`
    drift: Sequence[tuple[int, float]] = ()  # (tokens read, share of the calibrated channels still chosen)

    def follow(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Counts some tokens' queries q [1, H, R, D] and keys k [1, Hkv, R, D], where channels are ranked again."""
        return

    def rank_again(self, k: torch.Tensor, read: int) -> None:
        """Ranks the channels again after `read` tokens and indexes the cache's keys k [1, Hkv, C, D] anew."""
        return

    @abstractmethod
    def append(self, k: torch.Tensor) -> None:
        """Takes the keys that enter the cache, [B, Hkv, new, D]."""

    @abstractmethod
    def keep(self, columns: torch.Tensor) -> None:
        """Leaves only these keys, [B, Hkv, kept], as an eviction left only them in the cache."""

    @abstractmethod
    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = ALL_HEADS,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, Hkv, 1 or G, R, C] of queries q [B, H, R, D] against the cache's keys k [B, Hkv, C, D], all or its first.

        `heads` are the KV heads that q and k hold, where not all; `scale` is that of the model's logits. `visible` bool
        [Hkv, R, C] or [R, C] says what each query may see; all where None.
        """

    def count(self, share: float, n: torch.Tensor) -> torch.Tensor:
        """int64 like n: how many of n visible keys a query reads, at least one; all of them where the share is 1."""
        return (share * n.double() - _ROUNDING).ceil().clamp_min(1).long()

    def count_by(self, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """int64 [Hkv, R]: how many keys each query reads, by its `scores` [Hkv, R, C] and what it may see, bool alike.

        Asked only of a selector that counts `by_scores`.
        """
        raise TypeError(f"{type(self).__name__} counts no keys by their scores")

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What the index holds beside the cache."""
