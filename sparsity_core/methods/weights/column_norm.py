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
class ColumnNorm(NeuronMethod):
    """Keeps the neurons that write most strongly: importance is the norm of the neuron's column in the down projection."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"s_i = \lVert W^{\text{down}}_{:,i} \rVert_2"
    card: ClassVar[Card] = Card(
        sees="the down projection alone",
        costs="one pass over the weights",
        defaults="a quarter removed",
        fails="the largest perplexity of all cuts measured here",
    )

    def importance(self, block: FeedForward) -> torch.Tensor:
        return block.down.float().norm(dim=0)
