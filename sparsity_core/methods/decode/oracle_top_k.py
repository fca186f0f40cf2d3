from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, ReadingMethod, knob, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class OracleTopK(ReadingMethod):
    """Reads the keys to which the query's own dense attention goes most: the ceiling of every method that reads as many.

    The attention is exact, over all cached keys and summed over the query heads of a KV head, so nothing is saved: it says
    how much there is to win.
    """

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = (
        r"S_q = \operatorname{top}_{\text{keys}} \sum_h \operatorname{softmax}(q_h K^\top / \sqrt D)"
    )
    card: ClassVar[Card] = Card(
        sees="the exact attention of the current query to every cached key",
        costs="as much as dense attention: it saves nothing",
        defaults="64 keys; a ceiling has no paper's setting",
        fails=(
            "what it reads is best for the mean over a KV head's queries, not for the loss: a method may do better by "
            "luck"
        ),
    )

    keys: int = knob(
        64, low=8, high=4096, at_least=1, at_most=MOST_TOKENS, always=True, help="keys that a query reads per KV head"
    )

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        from sparsity_core.attention import ExactSelector

        return lambda layer: ExactSelector(keys=self.keys)
