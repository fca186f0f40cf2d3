from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, HeldKeys, RankedEviction, knob, max_pooled, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class MultiMetric(RankedEviction):
    """Keys are ranked by attention, by how often they matter, and by how little they repeat others, in one weighted sum.

    I is the attention of the last `recent` queries among the keys before them, the mean over queries and query heads,
    max-pooled as in R-KV. F is the share of those queries and heads whose `top` highest keys the key is among: a key that
    many look at a little beats one that few look at much. R is R-KV's redundancy. Each is divided by its largest over the
    held keys, so that the weights compare. The window itself always stays. The notes wish for token choice by several
    metrics, frequency and redundancy among them, and define none: these definitions are ours.
    """

    name: ClassVar[str] = "multi_metric"
    source: ClassVar[str] = "the user's notes on A2SF; redundancy as in arXiv:2505.24133"
    equation: ClassVar[str] = (
        r"A_k = w_a \frac{I_k}{\max_j I_j} + w_f \frac{F_k}{\max_j F_j} - w_r \frac{R_k}{\max_j R_j}"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the last 32 queries, and the cosines of the held keys to one another",
        costs="n² · D products a KV head at the cut, the rows of 32 queries, and their highest keys",
        defaults="window 32 as in SnapKV, pooling over 7 keys and similarity 0.5 as in R-KV; weights of our own",
        fails="as `snapkv`: what no query of the window asks about has no votes but for being unlike the others",
    )

    recent: int = knob(
        32,
        low=1,
        high=128,
        at_least=1,
        at_most=MOST_TOKENS,
        help="last queries, whose attention counts and whose keys stay",
    )
    attention: float = knob(
        1.0, low=0.0, high=2.0, at_least=0, at_most=1000, prominent=True, help="w_a: weight of the attention received"
    )
    frequency: float = knob(
        1.0,
        low=0.0,
        high=2.0,
        at_least=0,
        at_most=1000,
        help="w_f: weight of how often a key is among a query's highest",
    )
    redundancy: float = knob(
        1.0, low=0.0, high=2.0, at_least=0, at_most=1000, help="w_r: weight against keys that resemble others"
    )
    top: int = knob(16, low=1, high=128, at_least=1, at_most=MOST_TOKENS, help="a query's highest keys, for frequency")
    pool: int = knob(
        7, low=1, high=15, at_least=1, at_most=999, help="max pooling of the attention over this many keys (odd)"
    )
    similar: float = knob(
        0.5, low=0.0, high=1.0, at_least=-1, at_most=1, help="cosine above which keys repeat each other"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise ValueError(f"multi_metric: pool is an odd number of keys; got {self.pool}")
        if not self.attention + self.frequency + self.redundancy:
            raise ValueError("multi_metric: one of attention, frequency and redundancy is above 0; got 0 for all three")

    @property
    def n_queries(self) -> int:
        return self.recent

    def rank(self, held: HeldKeys) -> torch.Tensor:
        logits = held.logits(self.recent)  # [B, Hkv, G, w, n]
        before = logits.masked_fill(~held.before(self.recent)[:, :, None, None], float("-inf"))
        seen = before.softmax(-1).nan_to_num(0.0)
        least = seen.topk(min(self.top, seen.shape[-1]), dim=-1).values[..., -1:]
        among = ((seen >= least) & (seen > 0)).to(seen.dtype)
        attention = max_pooled(seen.mean((2, 3)), self.pool)
        return (
            self.attention * _of_largest(attention)
            + self.frequency * _of_largest(among.mean((2, 3)))
            - self.redundancy * _of_largest(held.redundancy(self.similar))
        )


def _of_largest(found: torch.Tensor) -> torch.Tensor:
    """Each of `found` ≥ 0 as a share of its head's largest; 0 where all are."""
    return found / found.amax(-1, keepdim=True).clamp_min(1e-30)
