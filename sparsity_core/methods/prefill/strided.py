from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class Strided(PrefillMethod):
    """The Sparse Transformer's strided pattern: the last `stride` keys, and every `stride`-th key before them.

    The paper gives the two parts to different heads; here every head has both.
    """

    source: ClassVar[str] = "arXiv:1904.10509"
    equation: ClassVar[str] = r"M_{q,k} = [\,q - k < l\,] \lor [\,(q - k) \bmod l = 0\,]"
    card: ClassVar[Card] = Card(
        sees="positions alone",
        costs="nothing",
        defaults="a stride of 64, where the paper has 128 and gives the two parts to different heads",
        fails="text, whose structure has no period: the paper says so and has a fixed pattern for it",
    )

    stride: int = knob(
        64, low=8, high=512, at_least=1, at_most=10**9, help="l: of the window and of the comb behind it"
    )

    def mask(self, view: PromptView) -> KeyMask:
        import torch
        from sparselens_kernels import Diagonals, KeyMask, Window

        comb = (torch.arange(view.n_tokens, device=view.k.device) % self.stride == 0)[None]
        return KeyMask([Window(self.stride), Diagonals(comb)], view.k.shape[0], view.n_tokens)
