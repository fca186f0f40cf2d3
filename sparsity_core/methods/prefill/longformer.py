from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class Longformer(PrefillMethod):
    """A sliding window, and global tokens: seen by every query, and seeing every key themselves.

    The global tokens are the first ones, since a decoder has no question or class token to choose. The paper's model is
    trained with its mask and its window lies on both sides; ours is causal and put on a model trained without it.
    """

    source: ClassVar[str] = "arXiv:2004.05150"
    equation: ClassVar[str] = r"M_{q,k} = [\,q - w < k\,] \lor [\,k < g\,] \lor [\,q < g\,]"
    card: ClassVar[Card] = Card(
        sees="positions alone",
        costs="nothing",
        defaults=(
            "a window of 256 and 16 global tokens, where the paper has 512 and chooses its global ones by the task"
        ),
        fails="a model that was not trained with the mask sees no fact between its first tokens and the window",
    )

    window: int = knob(
        256, low=16, high=2048, at_least=1, at_most=10**9, help="last keys that a query sees, its own too"
    )
    n_global: int = knob(
        16, low=0, high=256, at_least=0, at_most=10**9, help="first tokens, which see and are seen by all"
    )

    def mask(self, view: PromptView) -> KeyMask:
        import torch
        from sparselens_kernels import Columns, KeyMask, Window

        first = (torch.arange(view.n_tokens, device=view.k.device) < self.n_global)[None]
        terms = [Window(self.window), Columns(first), Columns(torch.ones_like(first), queries=first)]
        return KeyMask(terms, view.k.shape[0], view.n_tokens)
