from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sparsity_core.kinds import Card, LayerShape, ScanRule, ScoredEviction, knob, register


@register
@dataclass(frozen=True)
class TOVA(ScoredEviction):
    """Token omission via attention: A[n, k] = S[n, k], the last query's attention alone; the lowest goes.

    The paper averages over all heads of a layer, which then drop the same key (`shared_heads`); here each KV head decides for
    itself by default.
    """

    name: ClassVar[str] = "tova"
    source: ClassVar[str] = "arXiv:2401.06104"
    equation: ClassVar[str] = r"A_{n,k} = S_{n,k}"
    card: ClassVar[Card] = Card(
        sees="the last query's attention alone",
        costs="nothing beside the attention that is computed anyway; no state",
        defaults=(
            "no sinks and no window, as in the paper; each KV head for itself, where the paper lets all heads of a "
            "layer choose together"
        ),
        fails="one query that looks elsewhere is enough to lose a key for good",
    )

    shared_heads: bool = knob(
        False, help="all heads of a layer drop the same key, by their mean attention, as in the paper"
    )

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        how: dict[str, Any] = {"value_norm": self.value_norm, "reduction": self.reduction, "shared": self.shared_heads}
        return ScanRule(budget=budget, decay=0.0, **how)
