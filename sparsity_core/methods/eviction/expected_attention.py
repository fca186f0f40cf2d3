from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, HeldKeys, RankedEviction, knob, register, wide

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class ExpectedAttention(RankedEviction):
    """Keys stay that queries to come would attend to, were those normal with the mean and covariance of the past ones.

    μ and Σ are of the prompt's queries before the rotary embedding, the sinks' left out; R̄ is the mean rotation of the
    `future` positions that come next. The sinks stay and take no part, as in kvpress. A cut that comes while the model writes
    (`every`) counts the last 256 queries.
    """

    source: ClassVar[str] = "arXiv:2510.00636; NVIDIA/kvpress"
    equation: ClassVar[str] = (
        r"A_k = \Big(\tfrac1G \sum_h \operatorname{softmax}_k\Big(\tfrac{(\bar R\mu_h)^\top k}{\sqrt d}"
        r" + \tfrac{k^\top \bar R\Sigma_h\bar R^\top k}{2d}\Big) + \varepsilon\Big)\lVert v_k\rVert"
    )
    card: ClassVar[Card] = Card(
        sees="the mean and covariance of the past queries, before their rotary embedding",
        costs="D² products for each key and query head at the cut, and the queries' second moments",
        defaults="512 positions to come, 4 sinks, as in kvpress; ε = 0 where its leaderboard has 0.01 and Ada-KV",
        fails=(
            "where queries to come are unlike the past ones, as at a question after a document; needs rotary positions"
        ),
    )

    n_sink: int = knob(
        4, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped nor counted"
    )
    future: int = knob(512, low=1, high=2048, at_least=1, at_most=2**20, help="positions to come that count")
    covariance: bool = knob(True, help="count how the prompt's queries vary, not their mean alone")
    value_norm: bool = knob(True, help="weigh by the norm of each key's value")
    epsilon: float = knob(
        0.0, low=0.0, high=0.1, at_least=0, at_most=1, help="ε: 0 by default, 0.01 in kvpress's leaderboard"
    )

    @property
    def n_queries(self) -> int:
        return 256

    def rank(self, held: HeldKeys) -> torch.Tensor:
        keys, first = held.keys(), held.end - held.q.shape[2]
        q = self._before_rotation(held)[:, :, max(0, self.n_sink - first) :]
        if not q.shape[2]:  # sinks alone
            return keys.new_zeros(keys.shape[:3])
        mean = q.mean(2)  # [B, H, D]
        turn = self._mean_rotation(held, q)
        mu = turn(mean).unflatten(1, (keys.shape[1], -1))  # [B, Hkv, G, D]
        logits = mu @ keys.mT * held.scale
        if self.covariance:
            centred = turn(q - mean[:, :, None]).unflatten(1, (keys.shape[1], -1))  # [B, Hkv, G, T, D]
            sigma = centred.mT @ centred / q.shape[2]
            each = keys[:, :, None]
            logits = logits + ((each @ sigma) * each).sum(-1) * held.scale**2 / 2
        counted = held.exists & (held.positions >= self.n_sink)
        found = logits.masked_fill(~counted[:, :, None], float("-inf")).softmax(-1).nan_to_num(0.0).mean(2)
        return (found + self.epsilon) * wide(held.v).norm(dim=-1) if self.value_norm else found

    def _mean_rotation(self, held: HeldKeys, like: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What turns vectors [..., D] by the mean rotation of the positions to come."""
        frequencies = held.frequencies(self.name).to(like)
        at = like.new_tensor(range(held.end, held.end + self.future))
        angle = at[:, None] * frequencies
        cos, sin = angle.cos().mean(0), angle.sin().mean(0)
        return lambda x: _rotated(x, cos, sin)

    def _before_rotation(self, held: HeldKeys) -> torch.Tensor:
        """[B, H, w, D]: the queries with their rotary positions taken back."""
        q = wide(held.q)
        at = q.new_tensor(range(held.end - q.shape[2], held.end))
        angle = at[:, None] * held.frequencies(self.name).to(q)
        return _rotated(q, angle.cos(), -angle.sin())


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., D] with its rotary pairs, channel i beside i + half of those that turn, turned by cos and sin [..., half]."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    out = x.clone()
    out[..., :half], out[..., half : 2 * half] = first * cos - second * sin, second * cos + first * sin
    return out
