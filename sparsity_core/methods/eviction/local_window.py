from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import EvictionMethod, LayerShape, ScanRule, register


@register
@dataclass(frozen=True)
class LocalWindow(EvictionMethod):
    """The last `budget` keys stay: the baseline that looks at nothing."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"K_n = \{k > n - \text{budget}\}"

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        return ScanRule(budget=budget, recent=budget, scored=False)
