"""What the methods that cut FFN neurons have in common. Imports no torch, as no method file may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sparsity_core.kinds import Ranking
    from sparsity_core.models import Model
    from sparsity_core.weights import CompressedModel, FeedForward

from sparsity_core.kinds import MOST_CHANNELS, WeightMethod, knob, removed
from sparsity_core.work import Progress, silent


@dataclass(frozen=True)
class NeuronMethod(WeightMethod):
    """Ranks the neurons of each feed-forward block; the least important go, with their rows and their column."""

    ratio: float = removed("share of each layer's FFN neurons removed")
    allocation: str = knob(
        "uniform",
        choices=("uniform", "equal_ks"),
        help="the same ratio in every layer, or ratios of equal KS distance whose mean is the ratio",
    )
    multiple: int = knob(
        1,
        low=1,
        high=128,
        at_least=1,
        at_most=MOST_CHANNELS,
        help="kept neurons are rounded to a multiple of this; hardware likes 8, 64",
    )

    @property
    def one_ranking(self) -> bool:
        return self.allocation == "uniform"

    def n_kept(self, n: int) -> int:
        from sparsity_core.weights import kept_count

        return kept_count(n, self.ratio, self.multiple)

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        return self.compress_by(model, self.rank, progress)

    def compress_by(
        self,
        model: Model,
        rank: Callable[[Model, Sequence[FeedForward], Progress], Sequence[Ranking]],
        progress: Progress = silent,
    ) -> CompressedModel:
        """`compress` by other rankings than `self.rank` makes, such as those of an earlier calibration."""
        from sparsity_core.weights import cut_neurons

        return cut_neurons(
            model, self, rank, progress, ratio=self.ratio, allocation=self.allocation, multiple=self.multiple
        )

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        """One ranking per layer."""
        from sparsity_core.kinds import Ranking

        return [Ranking(self.importance(block)) for block in blocks]

    def importance(self, block: FeedForward) -> torch.Tensor:
        """[n]: how much each neuron of this block matters, from its weights alone."""
        raise TypeError(f"{type(self).__name__} must define importance or rank")
