from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, ReadingMethod, knob, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class OracleTopP(ReadingMethod):
    """Reads the fewest keys that hold a share of the query's own dense attention, of every query and KV head its own number.

    The attention is exact, over all cached keys and summed over the query heads of a KV head, so nothing is saved: it says
    how few keys would do.
    """

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"S_q = \arg\min_S |S| \;\text{ with }\; \sum_{k \in S} p_k \ge \text{mass} \sum_k p_k"
    card: ClassVar[Card] = Card(
        sees="the exact attention of the current query to every cached key",
        costs="as much as dense attention: it saves nothing",
        defaults="0.9 of the attention; a ceiling has no paper's setting",
        fails=(
            "flat attention, where it must read nearly everything; the share of the attention is not the share of "
            "what matters"
        ),
    )

    mass: float = knob(
        0.9, low=0.5, high=1.0, at_least=0, at_most=1.0, always=True, help="share of the attention that is read"
    )

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        from sparsity_core.attention import ExactSelector

        return lambda layer: ExactSelector(mass=self.mass)
