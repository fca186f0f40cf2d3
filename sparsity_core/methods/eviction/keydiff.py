from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, HeldKeys, RankedEviction, knob, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class KeyDiff(RankedEviction):
    """Keys unlike the others stay: those with the least cosine to the mean of all held keys, each scaled to length 1.

    The text is read in blocks, as in the paper, and no attention is needed. kvpress cuts once when the prompt ends (`every=0`).
    """

    name: ClassVar[str] = "keydiff"
    source: ClassVar[str] = "arXiv:2504.15364; NVIDIA/kvpress"
    equation: ClassVar[str] = (
        r"A_k = -\cos\Big(k_k,\ \tfrac1n \sum_{j} \frac{k_j}{\lVert k_j \rVert}\Big),\ j \text{ over the held keys}"
    )
    card: ClassVar[Card] = Card(
        sees="the keys' directions alone",
        costs="D products for each held key at each cut; no attention is needed",
        defaults="blocks of 16, where the paper has 128 beside budgets of thousands",
        fails=(
            "text of one theme, whose keys are all alike; it looks at no query, so that what is asked for does not "
            "count"
        ),
    )

    every: int = knob(
        16,
        low=0,
        high=128,
        at_least=0,
        at_most=MOST_TOKENS,
        help="tokens of a block (the paper's is 128, beside budgets of thousands): each cut makes room for so many keys; 0: "
        "one cut when the prompt ends",
    )

    def rank(self, held: HeldKeys) -> torch.Tensor:
        keys = held.keys()
        unit = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        anchor = (unit * held.exists[..., None]).sum(2, keepdim=True)  # its length changes no cosine
        return -(unit * anchor).sum(-1) / anchor.norm(dim=-1).clamp_min(1e-12)
