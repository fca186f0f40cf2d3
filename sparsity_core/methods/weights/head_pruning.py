from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, WeightMethod, knob, register, removed
from sparsity_core.methods.weights.calibrated import Calibrated
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    import torch

    from sparsity_core.models import Model
    from sparsity_core.weights import CompressedModel


@dataclass(frozen=True)
class _Heads(WeightMethod):
    ratio: float = removed("share of each layer's attention heads removed")
    importance: str = knob(
        "gradient",
        choices=("gradient", "norm"),
        help="what a mask on the head does to the loss of calibration text, or the norm of its value and output weights",
    )


@register
@dataclass(frozen=True)
class HeadPruning(Calibrated, _Heads):
    """Cuts the attention heads that matter least, the same number in every layer.

    Where the configuration can say so (Llama, Qwen, Mistral, Phi, Gemma) whole KV groups go, with their query heads; the
    ratio is then rounded to groups. Elsewhere (GPT-2, OPT) the heads' columns of the output projection become zeros:
    exact, but nothing shrinks. Michel et al. rank the heads of all layers together and cut in steps; a group's gradient
    here is the sum over its heads, which is that of one mask on all of them.
    """

    source: ClassVar[str] = "Michel, Levy and Neubig, arXiv:1905.10650"
    equation: ClassVar[str] = (
        r"s_g = \mathbb{E}_x \Bigl\lvert \sum_{h \in g} \frac{\partial L(x)}{\partial \xi_h} \Bigr\rvert"
        r"\quad\text{or}\quad s_g = \Bigl( \sum_{h \in g} \lVert W_O^{(h)} W_V^{(g)} \rVert_F^2 \Bigr)^{1/2}"
    )
    card: ClassVar[Card] = Card(
        sees="the loss's gradient to a mask on each head, on calibration text",
        costs="a forward and a backward over the text",
        defaults=(
            "a quarter of the heads of each layer, rounded to KV groups; Michel et al. rank all layers together and "
            "cut in steps"
        ),
        fails="models with few KV heads, whose groups are large: one of three is a third of the layer",
    )

    @property
    def tokens_read(self) -> int:
        return super().tokens_read if self.importance == "gradient" else 0

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        from sparsity_core.weights import cut_heads

        return cut_heads(model, self, self.scores, progress, ratio=self.ratio, reads_text=self.reads_text)

    def scores(self, model: Model, progress: Progress) -> list[torch.Tensor]:
        """Of each layer [n]: one score per KV group where groups go, per query head elsewhere."""
        return self._by_norm(model) if self.importance == "norm" else self._by_gradient(model, progress)

    def _by_gradient(self, model: Model, progress: Progress) -> list[torch.Tensor]:
        from sparsity_core.weights import mask_gradients, n_units

        windows = self.windows(model)
        found: list[torch.Tensor] = []
        for gradients in mask_gradients(model, windows, "head", progress):
            moved = [g.unflatten(0, (n_units(model), -1)).sum(1).abs() / len(windows) for g in gradients]
            found = [a + b for a, b in zip(found, moved, strict=True)] if found else moved
        return found

    def _by_norm(self, model: Model) -> list[torch.Tensor]:
        from sparsity_core.weights import heads_of, n_units

        found = []
        for heads in heads_of(model):
            output, value = heads.output.double(), heads.value.double()  # [H, hidden, D], [Hkv, D, hidden]
            value = value.repeat_interleave(len(output) // len(value), 0)
            # ‖A B‖² = tr(AᵀA · BBᵀ): D × D in place of hidden × hidden
            squares = ((output.mT @ output) * (value @ value.mT)).sum((1, 2))
            found.append(squares.unflatten(0, (n_units(model), -1)).sum(1).clamp_min(0.0).sqrt())
        return found
