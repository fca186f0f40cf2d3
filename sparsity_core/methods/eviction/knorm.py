from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, HeldKeys, RankedEviction, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class Knorm(RankedEviction):
    """Keys of a small norm stay: low norms go with high attention, and no query has to be seen.

    As in kvpress: one cut when the prompt ends. The paper's language modelling cuts at each step (`every=1`) and leaves its
    first two layers dense (`dense_layers=2`).
    """

    source: ClassVar[str] = "arXiv:2406.11430; NVIDIA/kvpress"
    equation: ClassVar[str] = r"A_k = -\lVert k_k \rVert_2"
    card: ClassVar[Card] = Card(
        sees="the keys' norms alone",
        costs="D products a key, once",
        defaults=(
            "one cut when the prompt ends, as in kvpress; the paper's language modelling cuts at each step and leaves "
            "two layers dense"
        ),
        fails="models with normalised keys (Qwen3, Gemma 3), whose norms say little; it looks at no query",
    )

    def rank(self, held: HeldKeys) -> torch.Tensor:
        return -held.keys().norm(dim=-1)
