from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, EvictionMethod, LayerShape, Pipeline, PrefillRule, knob, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class AdaKV(EvictionMethod):
    """Another method's votes, the highest of all heads of a layer together: heads share the layer's budget by need.

    Each head keeps its best `safeguard` of the budget in any case. The caches really are of different lengths: what `run`
    counts, each head holds. `generate` keeps a rectangle as wide as the longest. kvpress masks keys and frees no byte.
    """

    name: ClassVar[str] = "ada_kv"
    source: ClassVar[str] = "arXiv:2407.11550; FFY0/AdaKV; NVIDIA/kvpress"
    equation: ClassVar[str] = (
        r"\{(h, k)\} = \operatorname{top}_{H \cdot \text{budget}} A_{h,k},\quad |K_h| \ge \alpha \cdot \text{budget}"
    )
    card: ClassVar[Card] = Card(
        sees="what `base` looks at, over all heads of a layer at once",
        costs="what `base` costs, and one sort of a layer's votes",
        defaults="safeguard 0.2 as in kvpress; for small budgets 0.05 is advised",
        fails=(
            "heads' caches differ in length: a kernel that wants a rectangle pads to the longest, and saves less than "
            "is counted"
        ),
    )

    base: str = knob(
        "snapkv",
        prominent=True,
        help="the method that votes, one that cuts once: snapkv, or 'snapkv(pool=7)' with its knobs",
    )
    safeguard: float = knob(
        0.2,
        low=0.0,
        high=1.0,
        at_least=0,
        at_most=1,
        help="α: share of the budget that each head keeps in any case: 0.2 in kvpress, less for small budgets",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rule_within(self.budget, LayerShape(0, 1, 1))

    @property
    def remembers(self) -> bool:
        return self._base().remembers

    def rule_within(self, budget: int, layer: LayerShape) -> PrefillRule:
        base = replace(self._base(), budget=budget)
        rule = base.rule_within(base.budget_of(layer), layer)
        if not isinstance(rule, PrefillRule) or rule.then.budget is not None or rule.allot is not None:
            raise ValueError(
                f"ada_kv: base is a method that cuts once, when the prompt ends, and drops nothing else, as snapkv, knorm or "
                f"'keydiff(every=0)'; got {self.base}"
            )
        if isinstance(rule.budget, tuple):
            raise ValueError(
                f"ada_kv: {base.name} gives heads budgets of their own: choose layer_budget=uniform for it, or run it alone"
            )
        return replace(rule, allot=self.allot)

    def allot(self, ranked: torch.Tensor, budget: int) -> torch.Tensor:
        """int64 [B, Hkv]: how many of the keys that `ranked` [B, Hkv, n] puts in order each head keeps, of Hkv · budget."""
        batch, heads, n = ranked.shape
        safe = int(self.safeguard * budget + 1e-9)  # 0.29 of 100 is 29, whatever a product of floats says
        ordered = ranked.sort(dim=2, descending=True).values
        ordered[..., :safe] = float("inf")
        chosen = ordered.flatten(1).topk(min(heads * budget, heads * n), dim=1).indices
        return ordered.new_zeros(ordered.flatten(1).shape).scatter_(1, chosen, 1.0).view(batch, heads, n).sum(2).long()

    def _base(self) -> EvictionMethod:
        base = Pipeline.parse(f"eviction={self.base}").eviction
        if base is None:
            raise ValueError(f"ada_kv: base is an eviction method, as in snapkv; got {self.base!r}")
        own = [f.name for f in fields(EvictionMethod) if f.name != "layer_budget"]
        given = [name for name in own if getattr(base, name) != getattr(type(base)(), name)]
        if given:
            raise ValueError(f"ada_kv: give {' and '.join(given)} to ada_kv itself, not to its base")
        return base
