from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, HeldKeys, RankedEviction, knob, max_pooled, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class RKV(RankedEviction):
    """Keys that are attended to and unlike the other keys stay: what repeats itself goes, as long reasoning does.

    I is the attention of the last `observation_window` queries among the keys before them, max-pooled. A KV head's query
    heads become one by their largest logit, before the softmax, as in the authors' code. R is the softmax of each key's mean
    cosine to the held keys; of the keys that a key resembles (cosine above `similar`) the newest is not held against it,
    so that of near-equal keys the newest stays. The window itself always stays. Where no key is similar the authors' code
    leaves out the first one; ours none.
    """

    name: ClassVar[str] = "r_kv"
    source: ClassVar[str] = "arXiv:2505.24133; Zefan-Cai/R-KV"
    equation: ClassVar[str] = r"A_k = \lambda\, I_k - (1 - \lambda)\, R_k"
    card: ClassVar[Card] = Card(
        sees="the attention of the last 8 queries, and the cosines of the held keys to one another",
        costs="n² · D products a KV head at each cut (every 16 tokens), and the rows of 8 queries",
        defaults=(
            "λ 0.07, window 8 and pooling over 7 keys are the authors' code's; it cuts after every 128 tokens, ours "
            "after 16"
        ),
        fails=(
            "made for long reasoning that repeats itself: in a prompt without repetition redundancy weighs 93 % and "
            "says little"
        ),
    )

    every: int = knob(
        16,
        low=0,
        high=128,
        at_least=0,
        at_most=MOST_TOKENS,
        help="tokens from one cut to the next (the authors' is 128): each makes room for so many keys; 0: one cut when the "
        "prompt ends",
    )
    recent: int = knob(
        8,
        low=1,
        high=64,
        at_least=1,
        at_most=MOST_TOKENS,
        help="last queries, whose attention counts and whose keys stay",
    )
    weight: float = knob(
        0.07,
        low=0.0,
        high=1.0,
        at_least=0,
        at_most=1,
        help="λ of attention against redundancy: 0.07 in the code, 0.1 in the paper",
    )
    pool: int = knob(
        7, low=1, high=15, at_least=1, at_most=999, help="max pooling of the attention over this many keys (odd)"
    )
    similar: float = knob(
        0.5, low=0.0, high=1.0, at_least=-1, at_most=1, help="cosine above which keys repeat each other"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise ValueError(f"r_kv: pool is an odd number of keys; got {self.pool}")

    @property
    def n_queries(self) -> int:
        return self.recent

    def rank(self, held: HeldKeys) -> torch.Tensor:
        return self.weight * self._importance(held) - (1 - self.weight) * held.redundancy(self.similar)

    def _importance(self, held: HeldKeys) -> torch.Tensor:
        """[B, Hkv, n]: 0 for the window's own keys."""
        logits = held.logits(self.recent).amax(2)  # [B, Hkv, w, n]
        before = logits.masked_fill(~held.before(self.recent)[:, :, None], float("-inf"))
        return max_pooled(before.softmax(-1).nan_to_num(0.0).mean(2), self.pool)
