from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import REDUCTIONS, SelectionMethod, knob, register
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
