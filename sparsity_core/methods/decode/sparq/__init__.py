from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_CHANNELS, Card, SelectionMethod, knob, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class SparQ(SelectionMethod):
    """Ranks all keys by the channels in which the query itself is largest, then reads the best exactly.

    `mean_value` is the paper's correction: what is not read counts with the mean of all values, weighted by the attention
    that the approximate scores give it. Off by default, since it reads every value to know their mean.
    """

    name: ClassVar[str] = "sparq"
    source: ClassVar[str] = "arXiv:2312.04985"
    equation: ClassVar[str] = (
        r"\hat{s} = \operatorname{softmax}\!\Big(q_{C} K_{C}^\top \big/ "
        r"\sqrt{D\,\lVert q_{C}\rVert_1/\lVert q\rVert_1}\Big),\quad C = \operatorname{top}_r |q|"
    )
    card: ClassVar[Card] = Card(
        sees="the current query and, of every key, the channels in which it is largest",
        costs="T · r products a query and KV head; a second copy of the keys, channel by channel, or strided reads",
        defaults=(
            "16 channels of 64 where the paper has up to 64 of 128; each query chooses its own, as in the paper; no "
            "mean value, which the paper has"
        ),
        fails="queries without outlier channels; and the mean value needs every value read once",
    )

    channels: int = knob(
        16, low=4, high=64, at_least=1, at_most=MOST_CHANNELS, help="r: channels that each query chooses"
    )
    shared_channels: bool = knob(
        False,
        help="the query heads of a KV head choose channels together, by their summed |q|, as the authors' code does",
    )
    mean_value: bool = knob(False, help="what is not read counts with the mean value, by its approximate attention")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_value and self.reduction == "max":
            raise ValueError(
                f"{self.name}: mean_value weighs by approximate attention, which needs reduction sum or mean"
            )

    @property
    def corrects_mean(self) -> bool:
        return self.mean_value

    def ranked_channels(self, head_dim: int) -> int:
        return self.channels

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        from sparsity_core.methods.decode.sparq.selector import QuerySelector

        if self.channels > model.arch.head_dim:
            raise ValueError(
                f"{self.name}: channels is at most {model.arch.head_dim}, a head of {model.name}; got {self.channels}"
            )
        return lambda layer: QuerySelector(self.channels, self.reduction, self.shared_channels)
