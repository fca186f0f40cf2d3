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
class RowNorm(NeuronMethod):
    """Keeps the neurons whose row of the first FFN matrix is longest: importance ‖w_i‖."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"s_i = \lVert w_i \rVert_2"
    card: ClassVar[Card] = Card(
        sees="the first FFN matrix alone",
        costs="one pass over the weights",
        defaults="a quarter removed",
        fails="a long row is not one that is used: perplexity is far above a random cut's here",
    )

    def importance(self, block: FeedForward) -> torch.Tensor:
        return block.first.float().norm(dim=1)
