from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class BigBird(PrefillMethod):
    """Blocks of queries see the blocks of a window, the first blocks, and some blocks at random before them.

    The global blocks also see everything. Random blocks are drawn for each KV head and layer from the run's seed. The paper's
    window lies on both sides of a block; a causal one has the blocks before it alone.
    """

    name: ClassVar[str] = "bigbird"
    source: ClassVar[str] = "arXiv:2007.14062"
    equation: ClassVar[str] = r"M = M_{\text{window}} \lor M_{\text{global}} \lor M_{\text{random}}"
    card: ClassVar[Card] = Card(
        sees="positions and a draw",
        costs="nothing",
        defaults=(
            "blocks of 64, three of a window, three at random, as in the paper (whose two global blocks are here one)"
        ),
        fails="a model that was not trained with the mask: random blocks take the place of ones that matter",
    )

    block: int = knob(64, low=16, high=256, at_least=1, at_most=10**6, help="tokens of a block")
    window_blocks: int = knob(
        3, low=1, high=16, at_least=1, at_most=10**6, help="last blocks that are seen, its own too"
    )
    global_blocks: int = knob(1, low=0, high=8, at_least=0, at_most=10**6, help="first blocks, seen by and seeing all")
    random_blocks: int = knob(3, low=0, high=16, at_least=0, at_most=10**6, help="earlier blocks drawn for each block")

    def masks(self, seed: int) -> Callable[[PromptView], Any]:
        return lambda view: self._mask(view, seed)

    def mask(self, view: PromptView) -> KeyMask:
        return self._mask(view, 0)

    def _mask(self, view: PromptView, seed: int) -> KeyMask:
        import torch
        from sparselens_kernels import Blocks, KeyMask

        n_kv, side = view.k.shape[0], -(-view.n_tokens // self.block)
        query, key = torch.arange(side)[:, None], torch.arange(side)
        fixed = (key > query - self.window_blocks) | (key < self.global_blocks) | (query < self.global_blocks)
        generator = torch.Generator().manual_seed((seed * 4096 + view.layer) % 2**63)
        # What is left to draw from: earlier blocks that the window and the global ones do not show.
        free = (key <= query) & ~fixed
        lots = torch.rand(n_kv, side, side, generator=generator).masked_fill(~free, -1.0)
        drawn = lots.topk(min(self.random_blocks, side), dim=-1)
        random = torch.zeros(n_kv, side, side, dtype=torch.bool).scatter_(2, drawn.indices, drawn.values >= 0)
        return KeyMask([Blocks((fixed | random).to(view.k.device), self.block)], n_kv, view.n_tokens)
