from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_LAYERS, MOST_TOKENS, Card, ThinningMethod, knob, register, wide

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class ThinK(ThinningMethod):
    """Channels in which the last queries and the keys are small leave the cached keys when the prompt ends, for good.

    A channel counts by ‖q_c‖·‖k_c‖, the norm of what it adds to the logits of the last `window` queries; the query heads of a KV
    head add up their squares, and ⌊(1 − λ)·D⌋ channels stay. The last `recent` keys of the prompt, and all that come after it,
    keep every channel, as in the authors' code. The cache holds fewer bytes; kvpress writes noughts and frees none.
    """

    name: ClassVar[str] = "think"
    source: ClassVar[str] = "arXiv:2407.21018; SalesforceAIResearch/ThinK"
    equation: ClassVar[str] = (
        r"C = \operatorname{top}_{\lfloor(1-\lambda)D\rfloor}"
        r" \Big(\sum_{h} \sum_{q \ge T-w} Q_{h,q,c}^2\Big)^{1/2}\,\lVert K_{:,c}\rVert_2"
    )
    card: ClassVar[Card] = Card(
        sees="the prompt's last 32 queries and all keys that are held when it ends",
        costs="one pass over the keys and 32 queries, once; a byte for each channel of a head beside the cache",
        defaults="λ = 0.4, as in the paper; the last 32 keys whole, as in the authors' code",
        fails=(
            "channels that only later queries would use are gone; values keep all of theirs, so the cache is never below "
            "half; reading takes as many operations as before"
        ),
    )

    sparsity: float = knob(
        0.4,
        low=0.0,
        high=0.75,
        at_least=0,
        at_most=0.999,
        always=True,
        help="λ: share of each key's channels that goes; 0.4 and 0.5 in the paper",
    )
    window: int = knob(32, low=4, high=128, at_least=1, at_most=MOST_TOKENS, help="last prompt queries, which judge")
    recent: int = knob(
        32, low=0, high=256, at_least=0, at_most=MOST_TOKENS, help="last keys of the prompt, which keep all channels"
    )
    dense_layers: int = knob(
        0, low=0, high=8, at_least=0, at_most=MOST_LAYERS, help="first layers whose keys keep all channels"
    )

    @property
    def n_queries(self) -> int:
        return self.window

    @property
    def whole(self) -> int:
        return self.recent

    @property
    def first_layers(self) -> int:
        return self.dense_layers

    def channels_left(self, head_dim: int) -> int:
        return max(1, int((1 - self.sparsity) * head_dim + 1e-9))  # 0.7 of 10 is 7, whatever a product of floats says

    def ranked_channels(self, head_dim: int) -> int:
        return self.channels_left(head_dim)

    def importance(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        queries = wide(q).square().sum(2).unflatten(1, (k.shape[1], -1)).sum(2)  # [B, Hkv, D]
        return (queries * wide(k).square().sum(2)).sqrt()
