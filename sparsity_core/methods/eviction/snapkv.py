from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, LayerShape, PrefillRule, ScoredEviction, knob, register


@register
@dataclass(frozen=True)
class SnapKV(ScoredEviction):
    """One cut when the prompt ends: the last `observation_window` queries vote, votes are pooled, the top stays.

    Pooled are the votes for the keys before the window, as in the authors' code. The window itself always stays. Keys that
    come after the prompt are never dropped, so the budget is the prompt's.
    """

    name: ClassVar[str] = "snapkv"
    source: ClassVar[str] = "arXiv:2404.14469; FasterDecoding/SnapKV"
    equation: ClassVar[str] = r"A_k = \operatorname{pool}\Big(\sum_{q=T-w}^{T-1} S_{q,k}\Big)"
    card: ClassVar[Card] = Card(
        sees="the attention of the prompt's last 32 queries",
        costs="the rows of those queries, T · 32 · H products of D, again beside a fused kernel; no state afterwards",
        defaults="window 32 as in the paper; average pooling over 5 keys, as in the paper's code",
        fails=(
            "where the question is not among the last queries: what it will ask about has no votes. What is generated "
            "is never dropped"
        ),
    )

    observation_window: int = knob(
        32, low=4, high=128, at_least=1, at_most=MOST_TOKENS, help="last prompt queries, which vote and stay"
    )
    pool: int = knob(
        5, low=1, high=15, at_least=1, at_most=999, help="average pooling of the votes over this many keys (odd)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("observation_window")
        if self.pool % 2 == 0:
            raise ValueError(f"{self.name}: pool is an odd number of keys; got {self.pool}")

    def rule_within(self, budget: int, layer: LayerShape) -> PrefillRule:
        return PrefillRule(
            budget=budget,
            queries=self.observation_window,
            pool=self.pool,
            recent=self.observation_window,
            value_norm=self.value_norm,
            reduction=self.reduction,
        )
