from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import Card, LayerShape, knob, register
from sparsity_core.methods.eviction.snapkv import SnapKV


@register
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's votes under budgets that fall from layer to layer: the lowest has the most, the highest the least.

    Beside its window each layer keeps b_l keys, from b_{L−1} = b/β at the top to b_0 = 2b − b/β at the bottom, in equal steps,
    where b is the budget without the window: the same number in all. Where kvpress falls back to SnapKV, this one does not.
    """

    name: ClassVar[str] = "pyramid_kv"
    source: ClassVar[str] = "arXiv:2406.02069; Zefan-Cai/KVCache-Factory"
    equation: ClassVar[str] = r"b_l = 2b - \tfrac{b}{\beta} - l\,\frac{2b - 2b/\beta}{L - 1}"
    card: ClassVar[Card] = Card(
        sees="the attention of the prompt's last 32 queries",
        costs="as `snapkv`",
        defaults="β = 20, the paper's; window and pooling as in SnapKV",
        fails="as `snapkv`; and with a small budget the upper layers keep little more than the window",
    )

    layer_budget: str = knob("pyramid", choices=("pyramid", "uniform"), help="uniform: SnapKV")
    beta: float = knob(
        20.0, low=1.0, high=40.0, at_least=1, at_most=1000, help="β: how steep; 1 is uniform, the paper's is 20"
    )

    def budget_of(self, layer: LayerShape) -> int:
        if self.layer_budget == "uniform" or layer.n_layers == 1:
            return self.budget
        spread, top = self.budget - self.observation_window, layer.n_layers - 1

        def up_to(count: int) -> int:
            """Keys of the first so many layers, rounded once, so that the sum over all layers is exact."""
            least = spread / self.beta
            largest = 2 * spread - least
            return round(count * largest - (largest - least) / top * count * (count - 1) / 2)

        return self.observation_window + up_to(layer.index + 1) - up_to(layer.index)
