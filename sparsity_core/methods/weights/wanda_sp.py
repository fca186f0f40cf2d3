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
class WandaSP(Calibrated, NeuronMethod):
    """Keeps the neurons whose activations and outgoing weights are both large (Wanda, a column at a time).

    Wanda weighs single weights; the sum over a column is the structured variant of FLAP's paper. Its authors cut heads
    too, and measure each layer behind those cut before it; here every layer is measured in the whole model.
    """

    source: ClassVar[str] = "Sun et al., arXiv:2306.11695; structured in An et al., arXiv:2312.11983"
    equation: ClassVar[str] = r"s_i = \sum_j \lvert W_{\text{down}}[j, i] \rvert \, \lVert X_i \rVert_2"
    card: ClassVar[Card] = Card(
        sees="the down projection and the activations on calibration text",
        costs="a forward over the text",
        defaults="a quarter removed; the text is the library's own",
        fails="calibration text unlike what is run",
    )

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        from sparsity_core.kinds import Ranking
        from sparsity_core.weights import neuron_moments

        moments = neuron_moments(model, self.windows(model), progress)
        return [Ranking(b.down.double().abs().sum(0) * m.norm) for b, m in zip(blocks, moments, strict=True)]
