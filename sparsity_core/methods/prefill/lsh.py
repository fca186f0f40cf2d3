from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class LSH(PrefillMethod):
    """Reformer's hashing: a query sees the keys of its own bucket, in any round, and a window.

    Reformer shares one projection between queries and keys and cuts sorted buckets into chunks; here queries and keys of a
    model that was trained without it are hashed by the same random rotations, and buckets are whole.
    """

    name: ClassVar[str] = "lsh"
    source: ClassVar[str] = "arXiv:2001.04451"
    equation: ClassVar[str] = r"h(x) = \arg\max\,[\,xR;\,-xR\,],\quad M_{q,k} = [\,h(q) = h(k)\,]"
    card: ClassVar[Card] = Card(
        sees="the directions of queries and keys under random rotations",
        costs="rounds · buckets / 2 · D products for each query and key",
        defaults="16 buckets and 2 rounds, where Reformer has up to 8 rounds and chunks",
        fails=(
            "a model whose queries and keys were not trained to share a space: a query's bucket seldom holds the keys "
            "it wants"
        ),
    )

    buckets: int = knob(16, low=2, high=128, at_least=2, at_most=10**4, help="buckets of a round, an even number")
    rounds: int = knob(2, low=1, high=8, at_least=1, at_most=64, help="independent hashes; one match is enough")
    window: int = knob(64, low=1, high=512, at_least=1, at_most=10**9, help="last keys that a query sees, its own too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets % 2:
            raise ValueError(f"{self.name}: buckets is an even number, half for each direction; got {self.buckets}")

    def masks(self, seed: int) -> Callable[[PromptView], Any]:
        return lambda view: self._mask(view, seed)

    @property
    def per_query_head(self) -> bool:
        return True

    def mask(self, view: PromptView) -> KeyMask:
        return self._mask(view, 0)

    def _mask(self, view: PromptView, seed: int) -> KeyMask:
        import torch
        from sparselens_kernels import Buckets, KeyMask, Window

        n_heads, dim = view.q.shape[0], view.q.shape[2]
        generator = torch.Generator().manual_seed((seed * 4096 + view.layer) % 2**63)
        rotation = torch.randn(self.rounds, dim, self.buckets // 2, generator=generator).to(view.q.device)

        def hashed(x: torch.Tensor) -> torch.Tensor:  # [heads, T, D] → [heads, rounds, T]
            turned = x.float()[:, None] @ rotation
            return torch.cat([turned, -turned], dim=-1).argmax(-1)

        keys = hashed(view.k).repeat_interleave(n_heads // view.k.shape[0], 0)
        flops = 2 * (n_heads + view.k.shape[0]) * view.n_tokens * self.rounds * dim * self.buckets // 2
        return KeyMask([Buckets(hashed(view.q), keys), Window(self.window)], n_heads, view.n_tokens, flops)
