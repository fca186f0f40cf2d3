from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class XAttention(PrefillMethod):
    """Blocks by the sums of their antidiagonals, the fewest that reach `coverage` of each row of blocks.

    Query s · i + (s − 1 − j) meets key s · i' + j for every phase j, so that one strided product sums an antidiagonal of
    every s × s tile. Looks ahead within a block: its first queries profit from what its last ones attend to.
    """

    name: ClassVar[str] = "xattention"
    source: ClassVar[str] = "arXiv:2503.16428; mit-han-lab/x-attention"
    equation: ClassVar[str] = (
        r"\hat A_{i,i'} = \operatorname{softmax}_{i'} \Big( \tfrac{1}{s\sqrt D} \textstyle\sum_{j<s}"
        r"q_{si+s-1-j} \cdot k_{si'+j} \Big)"
    )
    card: ClassVar[Card] = Card(
        sees="sums along antidiagonals of strided queries and keys, which looks ahead within its block",
        costs="T² / (2 · stride) products of D a query head",
        defaults="stride 16 and coverage 0.9 as in the paper; blocks of 64, where theirs are 128",
        fails="a single key that matters in a block of others: its sum drowns",
    )

    coverage: float = knob(
        0.9, low=0.5, high=1.0, at_least=0.01, at_most=1.0, help="share of each row's sum that is kept"
    )
    stride: int = knob(
        16, low=2, high=64, at_least=1, at_most=10**6, help="s: side of a tile of which one antidiagonal counts"
    )
    block: int = knob(64, low=16, high=256, at_least=1, at_most=10**6, help="tokens of a block (theirs: 128)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block % self.stride:
            raise ValueError(f"{self.name}: a block is a whole number of strides; got {self.block} and {self.stride}")

    @property
    def looks_ahead(self) -> bool:
        return True

    @property
    def per_query_head(self) -> bool:
        return True

    def mask(self, view: PromptView) -> KeyMask:
        import torch
        from sparselens_kernels import Blocks, KeyMask

        from sparsity_core.attention import probing_flops, smallest_set

        n, n_heads, s = view.n_tokens, view.q.shape[0], self.stride
        side, tiles = -(-n // self.block), -(-n // self.block) * self.block // s
        pad = (0, 0, 0, tiles * s - n)
        q, k = (torch.nn.functional.pad(x.float(), pad).unflatten(1, (tiles, s)) for x in (view.q, view.k))
        k = k.repeat_interleave(n_heads // view.k.shape[0], 0)
        logits = q.flip(2).flatten(2) @ k.flatten(2).mT * (view.scale / s)  # [H, tiles, tiles]
        future = torch.ones(tiles, tiles, dtype=torch.bool, device=q.device).triu(1)
        empty = torch.arange(tiles, device=q.device) * s >= n
        rows = torch.softmax(logits.masked_fill(future | empty, float("-inf")), dim=-1)
        per = self.block // s
        sums = rows.masked_fill(empty[:, None], 0.0).unflatten(1, (side, per)).unflatten(3, (side, per)).sum((2, 4))
        kept = smallest_set(sums, self.coverage)
        kept[:, :, 0] = True
        kept |= torch.eye(side, dtype=torch.bool, device=q.device)
        return KeyMask([Blocks(kept, self.block)], n_heads, n, probing_flops(view, n * n // s))
