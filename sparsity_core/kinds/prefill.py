"""The prefill stage: which earlier keys a query of the prompt may see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsity_core.kinds.knobs import knob
from sparsity_core.kinds.method import Method

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PromptView:
    """What a prefill method may look at in one layer: H query heads, Hkv KV heads, T tokens of the prompt."""

    layer: int
    q: torch.Tensor  # [H, T, D], after the rotary embedding
    k: torch.Tensor  # [Hkv, T, D]
    v: torch.Tensor  # [Hkv, T, Dv]
    scale: float
    texts: tuple[str, ...]  # the text that each token adds

    @property
    def n_tokens(self) -> int:
        return int(self.k.shape[1])


@dataclass(frozen=True)
class PrefillMethod(Method):
    """Decides which earlier keys each query of the prompt sees; what comes after the prompt sees them all.

    A query always sees its own key, and never a later one.
    """

    stage = "prefill"

    dense_layers: int = knob(
        0, low=0, high=8, at_least=0, at_most=1000, help="first layers whose queries see everything"
    )

    @property
    def looks_ahead(self) -> bool:
        """Whether the keys that a query sees depend on tokens after it, as in a method that looks at the whole prompt first."""
        return False

    @property
    def per_query_head(self) -> bool:
        """Whether each query head has a mask of its own, also where it shares its keys with others."""
        return False

    def check(self, n_tokens: int) -> None:
        """Raises ValueError where the method cannot serve a prompt of so many tokens."""

    def mask(self, view: PromptView) -> Any:
        """The `sparselens_kernels.masks.KeyMask` of one layer."""
        raise TypeError(f"{type(self).__name__} must define mask")

    def masks(self, seed: int) -> Callable[[PromptView], Any]:
        """Makes the mask of each layer in turn; `seed` is the run's."""
        return self.mask
