from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, Pipeline, ReadingMethod, SelectionMethod, knob, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class Twilight(ReadingMethod):
    """Lets another method choose generously, then reads the fewest of its keys that hold a share of their attention.

    The attention among the chosen keys is estimated from a copy of all keys in few bits, which is counted. The query heads of a
    KV head read together: what any of them chooses, by the sum of their estimates.
    """

    source: ClassVar[str] = "arXiv:2502.02770; tsinghua-ideal/Twilight"
    equation: ClassVar[str] = (
        r"S_q = \arg\min_{S \subseteq B_q} |S| \;\text{ with }\; \sum_{k \in S} \hat p_k \ge p,\quad"
        r" \hat p = \operatorname{softmax}_{B_q}(q \hat K^\top / \sqrt D)"
    )
    card: ClassVar[Card] = Card(
        sees="what `base` looks at, then an int4 copy of the keys that it chose",
        costs="what `base` costs and D products for each chosen key; the int4 copy is held beside the cache",
        defaults="p = 0.95, the paper's for LLaMA-2, and 0.85 for others; int4 as in the paper",
        fails=(
            "flat attention, which needs nearly all keys to reach its share: it then reads what `base` gave it and "
            "paid for asking"
        ),
    )

    mass: float = knob(
        0.95,
        low=0.5,
        high=1.0,
        at_least=0,
        at_most=1.0,
        always=True,
        help="p: share of the chosen keys' attention that is read: 0.95 for LLaMA-2 in the paper, 0.85 for LLaMA-3.1",
    )
    base: str = knob(
        "quest",
        help="the method that chooses, by its own share of the context: quest, or 'double_sparsity(tokens=0.25)'",
    )
    label_dtype: str = knob(
        "int4", choices=("fp16", "int8", "int4"), help="number format of the keys that the estimate reads"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mass > 0:
            raise ValueError(f"{self.name}: mass is a share of the attention, above 0 to 1; got {self.mass:g}")
        _ = self.chooser

    @property
    def chooser(self) -> SelectionMethod:
        """The base method. Raises ValueError where it is none that chooses a share of the keys and leaves it at that."""
        base = Pipeline.parse(f"decode={self.base}").decode
        if not isinstance(base, SelectionMethod):
            raise ValueError(
                f"{self.name}: base is a method that reads a share of the context, as quest; got {self.base}"
            )
        if base.corrects_mean or base.keeps_cache_on_host or getattr(base, "rerank", 0) > 0:
            raise ValueError(
                f"{self.name}: the base chooses keys alone: turn mean_value, offload and rerank off; got {self.base}"
            )
        return base

    @property
    def needs_all_keys(self) -> str:
        return self.chooser.needs_all_keys

    @property
    def first_layers(self) -> int:
        return self.chooser.first_layers

    @property
    def every(self) -> int:
        return self.chooser.every

    def tokens_of(self, layer: int) -> float:
        return self.chooser.tokens_of(layer)

    def files(self) -> dict[str, str]:
        return self.chooser.files()

    def inputs(self) -> dict[str, str]:
        return self.chooser.inputs()

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        from sparsity_core.methods.decode.twilight.selector import TopPSelector

        base = self.chooser
        make = base.selectors(model, progress)
        return lambda layer: TopPSelector(make(layer), base.tokens_of(layer), self.mass, self.label_dtype)
