"""Eviction by a ranking of the method's own: what it may look at, and when the cache is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsity_core.kinds.eviction import EvictionMethod, LayerShape, PrefillRule, ScanRule
from sparsity_core.kinds.knobs import MOST_TOKENS, knob

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class HeldKeys:
    """One layer's cache when it is about to be cut. B texts, Hkv KV heads of G query heads each, n keys, w queries.

    Heads that hold fewer keys than others begin with empty slots; `exists` is False there, and where a gate or a rule has
    hidden the key already.
    """

    layer: int
    q: torch.Tensor  # [B, H, w, D]: the last queries, the newest last
    k: torch.Tensor  # [B, Hkv, n, D], in order of position
    v: torch.Tensor  # [B, Hkv, n, Dv]
    positions: torch.Tensor  # int64 [B, Hkv, n]
    exists: torch.Tensor  # bool [B, Hkv, n]
    end: int  # the position of the next token
    scale: float
    softcap: float | None = None
    window: int | None = None
    frequencies: Any = None  # called with the method's name: radians per position of each rotary pair

    def keys(self) -> torch.Tensor:
        """The keys in float32, or in float64 where the model's are."""
        return wide(self.k)

    def logits(self, last: int) -> torch.Tensor:
        """[B, Hkv, G, min(w, last), n] of the last queries; −∞ where a query cannot see the key."""
        q = wide(self.q[:, :, -last:]).unflatten(1, (self.k.shape[1], -1))
        found: torch.Tensor = q @ self.keys().mT[:, :, None] * self.scale
        if self.softcap is not None:
            found = (found / self.softcap).tanh() * self.softcap
        query = self.positions.new_tensor(range(self.end - q.shape[3], self.end))[:, None]
        key = self.positions[:, :, None]
        seen = self.exists[:, :, None] & (key <= query)
        if self.window is not None:
            seen = seen & (key > query - self.window)
        return found.masked_fill(~seen[:, :, None], float("-inf"))

    def attention(self, last: int) -> torch.Tensor:
        """[B, Hkv, G, min(w, last), n]: the softmax of `logits`."""
        return self.logits(last).softmax(-1)

    def before(self, last: int) -> torch.Tensor:
        """bool [B, Hkv, n]: the keys that stand before the last so many positions."""
        found: torch.Tensor = self.positions < self.end - last
        return found

    def redundancy(self, similar: float) -> torch.Tensor:
        """[B, Hkv, n]: how much each key repeats others, the softmax of its mean cosine to the held keys, as in R-KV.

        Of the keys that a key resembles (cosine above `similar`) the newest is not held against it, so that of near-equal
        keys the newest has the least.
        """
        keys, there = self.keys(), self.exists
        unit = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-8) * there[..., None]
        cosine = unit @ unit.mT  # [B, Hkv, n, n]
        cosine.diagonal(dim1=2, dim2=3).zero_()
        place = self.positions.new_tensor(range(cosine.shape[3]))
        newest = place.where(cosine > similar, -1).amax(-1, keepdim=True)  # of the keys that each key resembles
        cosine = cosine.masked_fill(place == newest, 0.0)
        mean = cosine.sum(2) / there.sum(2, keepdim=True).clamp_min(1)
        found: torch.Tensor = mean.masked_fill(~there, float("-inf")).softmax(-1).nan_to_num(0.0)
        return found


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or in float64 where it is."""
    return x if x.element_size() == 8 else x.float()


def max_pooled(found: torch.Tensor, pool: int) -> torch.Tensor:
    """[B, Hkv, n]: the largest of `found` ≥ 0 over `pool` neighbouring keys, an odd number."""
    around = pool // 2
    padded = found.new_zeros(*found.shape[:2], found.shape[2] + 2 * around)
    padded[..., around : around + found.shape[2]] = found
    return padded.unfold(2, pool, 1).amax(-1)


@dataclass(frozen=True)
class RankedEviction(EvictionMethod):
    """An eviction method with a ranking of its own: the lowest keys go, at the prompt's end or each time a block has come."""

    every: int = knob(
        0,
        low=0,
        high=128,
        at_least=0,
        at_most=MOST_TOKENS,
        help="0: one cut when the prompt ends. Else a cut whenever the cache is over its budget, which makes room for so "
        "many keys; the prompt is read so too",
    )
    n_sink: int = knob(0, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped")
    recent: int = knob(0, low=0, high=256, at_least=0, at_most=MOST_TOKENS, help="last tokens, never dropped")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink", "recent")
        if self.every > 1 and self.n_sink + self.recent + self.every - 1 > self.budget:
            raise ValueError(
                f"{self.name}: a cut that makes room for {self.every} keys leaves {self.budget + 1 - self.every} of a budget "
                f"of {self.budget}, fewer than the {self.n_sink} sinks + {self.recent} recent keys it protects. "
                "Raise the budget or lower every"
            )

    @property
    def n_queries(self) -> int:
        """How many of the last queries `rank` looks at, at most."""
        return 0

    def rank(self, held: HeldKeys) -> torch.Tensor:
        """[B, Hkv, n]: the lowest go first. What stands at keys that do not exist is ignored."""
        raise TypeError(f"{type(self).__name__} must define rank")

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule | PrefillRule:
        how: dict[str, Any] = {"budget": budget, "n_sink": self.n_sink, "recent": self.recent, "rank": self.rank}
        if self.every:
            return ScanRule(**how, scored=False, every=self.every, ranking_queries=self.n_queries)
        return PrefillRule(**how)
