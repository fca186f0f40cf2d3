from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.method import REDUCTIONS, DecodeMethod, Progress, knob, register

if TYPE_CHECKING:
    from sparsity_core.models import Model
    from sparsity_core.selection import Selector


@register
@dataclass(frozen=True)
class DoubleSparsity(DecodeMethod):
    """Ranks all keys by a few outlier channels kept in few bits, then reads the best exactly.

    The channels are calibrated after the rotary embedding and over all text, where the authors' code takes them before it
    and from the last block. A KV head's query heads share channels and selection; `per_head` gives each its own, as an
    accuracy reference that saves nothing.
    """

    source: ClassVar[str] = "arXiv:2408.07092; andy-yang-1/DoubleSparse"
    equation: ClassVar[str] = (
        r"\hat{s}_k = q_{C}\cdot K_{k,C},\quad S = \operatorname{top}_{\lceil\beta T\rceil}\hat{s}"
    )

    channels: int = knob(32, low=4, high=64, at_least=1, help="r: outlier channels of each key in the label cache")
    statistic: str = knob("qk", choices=("qk", "q", "k", "variance"), help="what the calibration ranks channels by")
    label_dtype: str = knob("fp16", choices=("fp16", "int8", "int4"), help="number format of the label cache")
    per_head: bool = knob(False, help="channels and selection for each query head: an accuracy reference")
    reduction: str = knob(
        "softmax",
        choices=("softmax", *REDUCTIONS),
        help="of the scores, over the query heads that share a KV head; softmax: the sum of their approximate attention",
    )
    calibration: str = knob("auto", help="auto, or a calibration file")
    offload: bool = knob(
        False, help="generation keeps its cache in host memory and fetches ahead what a step will read"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offload and self.per_head:
            raise ValueError(f"{self.name}: query heads that choose for themselves cannot be offloaded: turn one off")

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        import torch

        from sparsity_core.channels import channels_for
        from sparsity_core.selection import LabelSelector

        if self.channels > model.arch.head_dim:
            raise ValueError(
                f"{self.name}: channels is at most {model.arch.head_dim}, a head of {model.name}; got {self.channels}"
            )
        if self.label_dtype == "int4" and self.channels % 2:
            raise ValueError(f"{self.name}: int4 labels are stored in pairs: choose an even number of channels")
        calibrated = channels_for(model, self.calibration, progress)

        def make(layer: int) -> LabelSelector:
            order = calibrated.order(self.statistic, layer, per_head=self.per_head)[:, : self.channels]
            return LabelSelector(torch.from_numpy(order.copy()).to(model.device), self.label_dtype, self.reduction)

        return make
