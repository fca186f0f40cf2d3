from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, register
from sparsity_core.methods.weights.neurons import NeuronMethod

if TYPE_CHECKING:
    import torch

    from sparsity_core.weights import FeedForward


@register
@dataclass(frozen=True)
class Leverage(NeuronMethod):
    """Keeps the rows of the first FFN matrix that the others cannot stand in for: their leverage scores."""

    source: ClassVar[str] = "Drineas, Mahoney, Muthukrishnan (2008), SIAM J. Matrix Anal. Appl. 30(2)"
    equation: ClassVar[str] = r"s_i = \lVert U_{i,:} \rVert_2^2 = w_i\,(W^\top W)^{+}\,w_i^\top"
    card: ClassVar[Card] = Card(
        sees="the first FFN matrix alone",
        costs="an eigenproblem of d × d a layer",
        defaults="a quarter removed",
        fails="it keeps the spectrum, and what keeps the spectrum does not keep the perplexity here",
    )

    def importance(self, block: FeedForward) -> torch.Tensor:
        from sparsity_core.weights import leverage_scores

        return leverage_scores(block.first)
