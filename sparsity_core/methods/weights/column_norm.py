from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import register
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

    def importance(self, block: FeedForward) -> torch.Tensor:
        return block.down.float().norm(dim=0)
