from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, register
from sparsity_core.methods.weights.calibrated import Calibrated
from sparsity_core.methods.weights.svd_truncation import SVDTruncation
from sparsity_core.work import Progress

if TYPE_CHECKING:
    import torch

    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class SVDLLM(Calibrated, SVDTruncation):
    """Replaces each FFN matrix by the low-rank one whose output on the calibration text is nearest.

    Truncation after whitening by a root S of the inputs' second moment; the authors take Cholesky's, and any gives the same.
    They also truncate the attention's matrices and then fine-tune the factors one after the other (`recover` here). The
    rank is as in `svd_truncation`, and the product is stored, not the factors: the saved size does not shrink.
    """

    name: ClassVar[str] = "svd_llm"
    source: ClassVar[str] = "Wang et al., arXiv:2403.07378"
    equation: ClassVar[str] = (
        r"\hat W = \operatorname{trunc}_k(W S)\,S^{-1},\quad S S^\top = \tfrac1T \textstyle\sum_t x_t x_t^\top"
    )
    card: ClassVar[Card] = Card(
        sees="the weights and the second moment of their inputs on calibration text",
        costs="a forward over the text and a decomposition of each matrix",
        defaults=(
            "a quarter of the parameters; not the attention's matrices, and no fine-tuning, both of which the authors "
            "have"
        ),
        fails="as `svd_truncation`, less badly; calibration text unlike what is run",
    )

    def moments(self, model: Model, progress: Progress) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None]]:
        from sparsity_core.weights import input_moments

        yield from input_moments(model, self.windows(model), progress)
