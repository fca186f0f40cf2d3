from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import Card, LayerShape, ScanRule, ScoredEviction, knob, register


@register
@dataclass(frozen=True)
class H2O(ScoredEviction):
    """Heavy hitters: A[n, k] = Σ_{q ≤ n} S[q, k], beside a recent window.

    The authors' lm-eval file scores with column sums over all queries, the future included; this one never does.
    """

    name: ClassVar[str] = "h2o"
    source: ClassVar[str] = "arXiv:2306.14048; FMInference/H2O"
    equation: ClassVar[str] = r"A_{n,k} = \sum_{q=k}^{n} S_{q,k}"
    card: ClassVar[Card] = Card(
        sees="the attention that the queries so far gave to each held key",
        costs=(
            "one add for each held key, query and KV head, on attention that is computed anyway; a float32 a held key"
        ),
        defaults="half of the budget for the last tokens, as in the authors' code",
        fails=(
            "old keys have been summed longest, so that early tokens stay whether or not they still matter: the "
            "unfairness that A2SF names"
        ),
    )

    recent_share: float = knob(
        0.5, low=0.0, high=1.0, at_least=0, at_most=1, help="share of the budget that the last tokens hold"
    )

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        recent = int(budget * self.recent_share + 1e-9)  # 0.29 of 100 is 29, whatever a product of floats says
        return ScanRule(budget=budget, recent=recent, value_norm=self.value_norm, reduction=self.reduction)
