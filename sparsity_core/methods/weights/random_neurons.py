from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_SEED, Card, knob, register
from sparsity_core.methods.weights.neurons import NeuronMethod

if TYPE_CHECKING:
    import torch

    from sparsity_core.weights import FeedForward


@register
@dataclass(frozen=True)
class RandomNeurons(NeuronMethod):
    """Keeps neurons drawn at random: what any other choice has to beat."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"s_i \sim U(0, 1)"
    card: ClassVar[Card] = Card(
        sees="nothing",
        costs="a draw for each neuron",
        defaults="a quarter removed; any seed",
        fails="it differs from seed to seed twentyfold in perplexity: look at several",
    )

    seed: int = knob(0, low=0, high=99, at_least=0, at_most=MOST_SEED, help="of the draw; every layer draws its own")

    def importance(self, block: FeedForward) -> torch.Tensor:
        import torch

        generator = torch.Generator().manual_seed(1_000_003 * self.seed + block.layer)
        return torch.rand(block.n_neurons, generator=generator)
