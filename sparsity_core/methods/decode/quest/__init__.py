from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import REDUCTIONS, Card, SelectionMethod, knob, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class Quest(SelectionMethod):
    """Ranks pages of keys by an upper bound of their logits, from each page's smallest and largest channel values.

    As the authors have it each query head reads whole pages of its own choice, the page that is being filled among them.
    """

    source: ClassVar[str] = "arXiv:2406.10774"
    equation: ClassVar[str] = r"b_P = \sum_c \max\big(q_c \min_{k\in P} K_{k,c},\; q_c \max_{k\in P} K_{k,c}\big)"
    card: ClassVar[Card] = Card(
        sees="the current query and every page's smallest and largest channel values",
        costs="2 · T / 16 · D products a query head; two numbers a channel and page beside the cache",
        defaults=(
            "pages of 16, a quarter read, two dense layers: the authors' code; each query head reads whole pages of "
            "its own"
        ),
        fails=(
            "one key that matters in a page of others costs the whole page; where query heads share KV heads they "
            "read different pages, and more is read than any of them chooses"
        ),
    )

    page: int = knob(16, low=4, high=64, at_least=1, at_most=4096, help="neighbouring keys of a page")
    reduction: str = knob(
        "none",
        choices=("none", *REDUCTIONS),
        help="none: each query head reads pages of its own; else how the softmaxes of the bounds of a KV head's become one",
    )

    @property
    def needs_all_keys(self) -> str:
        return "quest's pages keep every key: leave the gate and eviction empty, or choose another decode method"

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        from sparsity_core.methods.decode.quest.selector import PageSelector

        return lambda layer: PageSelector(self.page, self.reduction)
