"""The decode stage: what of the cached keys a query reads: some keys, chosen anew by each, or some of their channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sparsity_core.kinds.selector import Selector

from sparsity_core.kinds.knobs import MOST_LAYERS, MOST_TOKENS, REDUCTIONS, knob, per_layer
from sparsity_core.kinds.method import Method
from sparsity_core.work import Progress


@dataclass(frozen=True)
class DecodeMethod(Method):
    """Decides what of the cached keys a query reads."""

    stage = "decode"

    @property
    def needs_all_keys(self) -> str:
        """Why no key may leave the cache beside this method, and what to do about it; empty where keys may."""
        return ""

    def ranked_channels(self, head_dim: int) -> int:
        """How many of a key's channels a query needs to rank it, of a head's so many."""
        return head_dim

    @property
    def first_layers(self) -> int:
        """How many of the first layers read everything."""
        return 0


@dataclass(frozen=True)
class ThinningMethod(DecodeMethod):
    """Takes channels from the cached keys for good when the prompt ends; the last keys, and those to come, keep all.

    Attention to a key that lost channels is that to the key with noughts in their place.
    """

    @property
    def n_queries(self) -> int:
        """How many of the prompt's last queries `importance` looks at, at most."""
        raise TypeError(f"{type(self).__name__} must define n_queries")

    @property
    def whole(self) -> int:
        """How many of the prompt's last keys keep all their channels."""
        raise TypeError(f"{type(self).__name__} must define whole")

    def channels_left(self, head_dim: int) -> int:
        """How many channels a key keeps, of a head's so many, 1 at least."""
        raise TypeError(f"{type(self).__name__} must define channels_left")

    def importance(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """[B, Hkv, D] of the last queries [B, H, w, D] and all keys [B, Hkv, n, D] that are held; the highest stay.

        Where a slot holds no key, k is 0.
        """
        raise TypeError(f"{type(self).__name__} must define importance")


@dataclass(frozen=True)
class ReadingMethod(DecodeMethod):
    """Chooses at each step which cached keys a query reads; what it leaves unread stays in the cache."""

    @property
    def corrects_mean(self) -> bool:
        """Whether the keys that a query does not read count with the mean of the values."""
        return False

    @property
    def keeps_cache_on_host(self) -> bool:
        """Whether generation keeps its cache in host memory and fetches ahead what a step will read."""
        return False

    @property
    def every(self) -> int:
        """Every so many steps, one step reads everything; 0: none does."""
        return 0

    def tokens_of(self, layer: int) -> float:
        """The share of the context that a query of this layer reads at most; its selector may ask for less."""
        return 1.0

    def selectors(self, model: Any, progress: Progress) -> Callable[[int], Selector]:
        """Makes the selector of a layer, anew for each run. Raises ValueError where the method does not fit the model."""
        raise TypeError(f"{type(self).__name__} must define selectors")


@dataclass(frozen=True)
class SelectionMethod(ReadingMethod):
    """Reads a share of the cached keys at each step, chosen by an approximate score; the KV head's query heads together."""

    tokens: float = knob(
        0.25, low=0.03, high=1.0, at_least=0, at_most=1.0, always=True, help="share of the context that a query reads"
    )
    dense_layers: int = knob(
        2, low=0, high=8, at_least=0, at_most=MOST_LAYERS, help="first layers that read everything"
    )
    dense_every: int = knob(
        0,
        low=0,
        high=64,
        at_least=0,
        at_most=MOST_TOKENS,
        help="every so many steps, one step reads everything; 0: none does",
    )
    layer_tokens: str = knob(
        "", help="a share for each layer in place of `tokens`, as in 1, 0.5, 0.25; later layers take the last"
    )
    reduction: str = knob(
        "sum", choices=REDUCTIONS, help="how the scores of the query heads that share a KV head become one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in per_layer(f"{self.name}: layer_tokens", self.layer_tokens, float):
            if not 0 < share <= 1:
                raise ValueError(f"{self.name}: layer_tokens are shares of the context, above 0 to 1; got {share:g}")
        if not self.tokens > 0:
            raise ValueError(
                f"{self.name}: tokens is the share of the context that is read, above 0 to 1; got {self.tokens:g}"
            )

    @property
    def first_layers(self) -> int:
        return self.dense_layers

    @property
    def every(self) -> int:
        return self.dense_every

    def tokens_of(self, layer: int) -> float:
        own = per_layer(f"{self.name}: layer_tokens", self.layer_tokens, float)
        return own[min(layer, len(own) - 1)] if own else self.tokens
