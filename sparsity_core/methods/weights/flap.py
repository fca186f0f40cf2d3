from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, knob, register
from sparsity_core.methods.weights.calibrated import Calibrated
from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Ranking
    from sparsity_core.models import Model
    from sparsity_core.weights import FeedForward


@register
@dataclass(frozen=True)
class FLAP(Calibrated, NeuronMethod):
    """Keeps the neurons that fluctuate most; the mean of the others goes into the bias of the down projection.

    Such a bias is stored by Phi, GPT-2, OPT and Llama (`mlp_bias`), not by Qwen, Mistral and Gemma, whose code has none:
    there neurons are chosen alike, and the result says that nothing makes up for them. The authors also cut heads and share
    the cut out over layers by standardised scores; here it is `allocation`, uniform by default.
    """

    source: ClassVar[str] = "An et al., arXiv:2312.11983"
    equation: ClassVar[str] = (
        r"s_i = \operatorname{Var}(X_i)\,\lVert W_{\text{down}}[:, i] \rVert_2^2,\quad "
        r"b \mathrel{+}= \sum_{i\ \text{cut}} W_{\text{down}}[:, i]\,\overline{X}_i"
    )
    card: ClassVar[Card] = Card(
        sees="activations' variance and the down projection",
        costs="a forward over the text",
        defaults="a quarter removed, uniform over layers, where the authors share it out by standardised scores",
        fails=(
            "families without a bias in the down projection (Qwen, Mistral, Gemma), where nothing makes up for what "
            "is cut"
        ),
    )

    compensate: bool = knob(True, help="add the lost neurons' mean output to the bias, where the family has one")

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        from sparsity_core.kinds import Ranking
        from sparsity_core.weights import neuron_moments

        moments = neuron_moments(model, self.windows(model), progress)
        return [
            Ranking(m.variance * b.down.double().square().sum(0), m.mean if self.compensate else None)
            for b, m in zip(blocks, moments, strict=True)
        ]
