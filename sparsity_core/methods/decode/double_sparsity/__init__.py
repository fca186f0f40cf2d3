from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_CHANNELS, MOST_TOKENS, REDUCTIONS, Card, SelectionMethod, knob, per_layer, register
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Selector
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class DoubleSparsity(SelectionMethod):
    """Ranks all keys by a few outlier channels kept in few bits, then reads the best exactly.

    The channels are calibrated after the rotary embedding and over all text, where the authors' code takes them before it
    and from the last block. A KV head's query heads share channels and selection; `per_head` gives each its own, as an
    accuracy reference that saves nothing.
    """

    source: ClassVar[str] = "arXiv:2408.07092; andy-yang-1/DoubleSparse"
    equation: ClassVar[str] = (
        r"\hat{s}_k = q_{C}\cdot K_{k,C},\quad S = \operatorname{top}_{\lceil\beta T\rceil}\hat{s}"
    )
    card: ClassVar[Card] = Card(
        sees="the current query and the label cache: 32 channels of every key",
        costs=(
            "T · r products a query and KV head group; the labels, r numbers and a scale a key, are held beside the "
            "cache"
        ),
        defaults=(
            "32 of 64 channels, where the paper takes 1/16 to 1/4 of 128; a quarter of the tokens; two dense layers, "
            "as in the authors' code"
        ),
        fails=(
            "channels calibrated on other text than is read; with few of them the summed choice of a KV head's "
            "queries misses what one of them needs"
        ),
    )

    channels: int = knob(
        32, low=4, high=64, at_least=1, at_most=MOST_CHANNELS, help="r: outlier channels of each key in the label cache"
    )
    statistic: str = knob("qk", choices=("qk", "q", "k", "variance"), help="what the calibration ranks channels by")
    label_dtype: str = knob("fp16", choices=("fp16", "int8", "int4"), help="number format of the label cache")
    per_head: bool = knob(False, help="channels and selection for each query head: an accuracy reference")
    reduction: str = knob(
        "softmax",
        choices=("softmax", *REDUCTIONS),
        help="how the scores of the query heads that share a KV head become one; softmax: the sum of their approximate attention",
    )
    calibration: str = knob("auto", path=True, help="auto, or a calibration file")
    layer_channels: str = knob(
        "", help="r for each layer in place of `channels`, as in 32, 16; later layers take the last"
    )
    rerank: int = knob(
        0,
        low=0,
        high=256,
        at_least=0,
        at_most=MOST_TOKENS,
        help="every so many tokens the channels are ranked again by what was read; 0: never",
    )
    mean_value: bool = knob(
        False, help="what is not read counts with the mean value, by its approximate attention (SparQ)"
    )
    offload: bool = knob(
        False, help="generation keeps its cache in host memory and fetches ahead what a step will read"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offload and (self.per_head or self.rerank):
            raise ValueError(
                f"{self.name}: an offloaded cache serves KV heads with fixed channels: turn per_head and rerank off"
            )
        if self.mean_value and self.reduction != "softmax":
            raise ValueError(f"{self.name}: mean_value weighs by approximate attention, which needs reduction=softmax")
        for r in self._channels():
            if r < 1:
                raise ValueError(f"{self.name}: layer_channels are at least 1; got {r}")
            if self.label_dtype == "int4" and r % 2:
                raise ValueError(f"{self.name}: int4 labels are stored in pairs: choose an even number of channels")

    def ranked_channels(self, head_dim: int) -> int:
        return round(sum(self._channels()) / len(self._channels()))

    def _channels(self) -> list[int]:
        return per_layer(f"{self.name}: layer_channels", self.layer_channels, int) or [self.channels]

    @property
    def needs_all_keys(self) -> str:
        all_keys = "an offloaded cache keeps every key: leave the gate and eviction empty, or turn offload off"
        return all_keys if self.offload else ""

    @property
    def corrects_mean(self) -> bool:
        return self.mean_value

    @property
    def keeps_cache_on_host(self) -> bool:
        return self.offload

    def inputs(self) -> dict[str, str]:
        from sparsity_core.models import calibration_digest

        return super().inputs() or {"calibration text": calibration_digest()}

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        import torch

        from sparsity_core.methods.decode.double_sparsity.calibration import channels_for
        from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector

        own = self._channels()
        if max(own) > model.arch.head_dim:
            raise ValueError(
                f"{self.name}: channels is at most {model.arch.head_dim}, a head of {model.name}; got {max(own)}"
            )
        calibrated = channels_for(model, self.calibration, progress)

        def make(layer: int) -> LabelSelector:
            r = own[min(layer, len(own) - 1)]
            order = calibrated.order(self.statistic, layer, per_head=self.per_head)[:, :r]
            channels = torch.from_numpy(order.copy()).to(model.device)
            return LabelSelector(channels, self.label_dtype, self.reduction, self.rerank)

        return make
