from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import Card, EvictionMethod, LayerShape, ScanRule, register


@register
@dataclass(frozen=True)
class LocalWindow(EvictionMethod):
    """The last `budget` keys stay: the baseline that looks at nothing."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"K_n = \{k > n - \text{budget}\}"
    card: ClassVar[Card] = Card(
        sees="positions alone",
        costs="nothing",
        defaults="the baseline has no numbers but its budget",
        fails=(
            "the first tokens, which models use as attention sinks, are lost: perplexity rises sharply once they "
            "leave the window"
        ),
    )

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        return ScanRule(budget=budget, recent=budget, scored=False)
