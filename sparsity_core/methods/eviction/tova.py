from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import LayerShape, ScanRule, ScoredEviction, register


@register
@dataclass(frozen=True)
class TOVA(ScoredEviction):
    """Token omission via attention: A[n, k] = S[n, k], the last query's attention alone; the lowest goes.

    The paper averages over all heads of a layer; here each KV head decides for itself.
    """

    name: ClassVar[str] = "tova"
    source: ClassVar[str] = "arXiv:2401.06104"
    equation: ClassVar[str] = r"A_{n,k} = S_{n,k}"

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        return ScanRule(budget=budget, decay=0.0, value_norm=self.value_norm, reduction=self.reduction)
