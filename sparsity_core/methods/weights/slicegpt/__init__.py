from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_CHANNELS, Card, WeightMethod, knob, register, removed
from sparsity_core.methods.weights.calibrated import Calibrated
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    from sparsity_core.models import Model
    from sparsity_core.weights import CompressedModel


@register
@dataclass(frozen=True)
class SliceGPT(Calibrated, WeightMethod):
    """Turns the residual stream to its principal axes on the calibration text, and cuts the least of them away.

    One rotation serves the whole model, so that the result is an ordinary checkpoint. The authors turn every block by a
    rotation of its own, which costs a matrix on each residual connection and a model class of their own. Norm weights move
    into the matrices that follow, which alone changes the spectra of gate and up, and the head's: embeddings that were tied
    to it no longer are, which adds parameters.
    """

    name: ClassVar[str] = "slicegpt"
    source: ClassVar[str] = "Ashkboos et al., arXiv:2401.15024"
    equation: ClassVar[str] = (
        r"x \to Q^\top x,\quad Q = \text{leading eigenvectors of } \textstyle\sum_l \sum_t \hat x_{l,t}\,\hat x_{l,t}^\top,"
        r"\quad \hat x = x / \operatorname{rms}(x)"
    )
    card: ClassVar[Card] = Card(
        sees="the residual stream's second moment on calibration text",
        costs="a forward over the text and an eigenproblem of d × d",
        defaults="a quarter of the channels; one rotation for the model, where the authors turn every block by its own",
        fails=(
            "small models and early layers, whose principal axes one rotation does not serve; ties between embeddings "
            "and head are cut, which adds parameters"
        ),
    )

    ratio: float = removed("share of the residual stream's channels removed")
    multiple: int = knob(
        8, low=1, high=128, at_least=1, at_most=MOST_CHANNELS, help="kept channels are rounded to a multiple of this"
    )

    @property
    def turns_stream(self) -> bool:
        return True

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        from sparsity_core.methods.weights.slicegpt.rotation import slice_stream

        return slice_stream(model, self, self.windows, progress, ratio=self.ratio, multiple=self.multiple)
