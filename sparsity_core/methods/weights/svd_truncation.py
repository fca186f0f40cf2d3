from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, WeightMethod, register, removed
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    import torch

    from sparsity_core.models import Model
    from sparsity_core.weights import CompressedModel


@register
@dataclass(frozen=True)
class SVDTruncation(WeightMethod):
    """Replaces each FFN matrix by the nearest one of low rank.

    The rank is the largest whose two factors hold the share of the parameters that stays, so a small ratio already takes
    more than half the rank of a square matrix, and 0 leaves the matrices as they are. The product is stored, not the
    factors, for others to load it: the saved size does not shrink.
    """

    source: ClassVar[str] = "Eckart and Young (1936), Psychometrika 1(3)"
    equation: ClassVar[str] = (
        r"\hat W = U_k \Sigma_k V_k^\top,\quad k = \Bigl\lfloor (1 - \text{ratio}) \frac{mn}{m + n} \Bigr\rfloor"
    )
    card: ClassVar[Card] = Card(
        sees="the weights alone",
        costs="a singular value decomposition of each FFN matrix",
        defaults="a quarter of the parameters",
        fails=(
            "FFN matrices are of full rank in effect: a quarter of the parameters costs nearly half of the rank, and "
            "the model is lost"
        ),
    )

    ratio: float = removed("share of each FFN matrix's parameters removed")

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        from sparsity_core.weights import truncate

        return truncate(model, self, self.moments, progress, ratio=self.ratio)

    def moments(self, model: Model, progress: Progress) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Layer after layer, the second moments of what gate and up read and of what down reads; None for the plain norm."""
        for layer in range(model.arch.n_layers):
            progress(layer / model.arch.n_layers, f"low rank, layer {layer + 1} of {model.arch.n_layers}")
            yield None, None
