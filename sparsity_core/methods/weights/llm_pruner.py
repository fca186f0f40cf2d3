from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, register
from sparsity_core.methods.weights.calibrated import Calibrated
from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Ranking
    from sparsity_core.models import Model
    from sparsity_core.weights import FeedForward


@register
@dataclass(frozen=True)
class LLMPruner(Calibrated, NeuronMethod):
    """Keeps the neurons without which the loss would change most, to first order.

    The coupled structure is a neuron: its rows of gate and up and its column of down. Its salience is the derivative of a
    mask on it, which is Σ w·∂L/∂w over the column of down, and over up's row too where there is a gate. The authors add the
    gate's row as a term of its own, cut heads too, spare the first and last layers, and fine-tune (`recover` here).
    """

    source: ClassVar[str] = "Ma, Fang and Wang, arXiv:2305.11627"
    equation: ClassVar[str] = (
        r"s_i = \Bigl\lvert \sum_j W_{\text{down}}[j, i]\, \frac{\partial L}{\partial W_{\text{down}}[j, i]} \Bigr\rvert"
        r" = \Bigl\lvert \xi_i \frac{\partial L}{\partial \xi_i} \Bigr\rvert_{\xi = 1}"
    )
    card: ClassVar[Card] = Card(
        sees="the loss's gradient on calibration text",
        costs="a forward and a backward over the text",
        defaults="a quarter removed in every layer, where the authors spare the first and last ones and fine-tune",
        fails="large cuts: a first-order estimate holds for small ones",
    )

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        from sparsity_core.kinds import Ranking
        from sparsity_core.weights import mask_gradients

        windows = self.windows(model)
        sums = [block.down.new_zeros(block.n_neurons).double() for block in blocks]
        for gradients in mask_gradients(model, windows, "neuron", progress):
            sums = [s + g / len(windows) for s, g in zip(sums, gradients, strict=True)]
        return [Ranking(s.abs()) for s in sums]
