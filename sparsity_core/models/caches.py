"""What transformers' own cache holds of each layer, and the cache that generation fills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values as transformers caches them."""

    token_bytes: (
        int  # of one token: keys and values of all KV heads, or the latent they are made from; 0: none of its own
    )
    window: int | None = None  # how many keys a query sees, its own included; None: all earlier ones
    most: int | None = None  # tokens that transformers keeps at most
    source: int | None = None  # the layer whose keys this one reads
    latent: bool = False  # what is cached is what keys and values are made from

    def bytes_of(self, n: int) -> int:
        """What transformers holds of this layer after a text of n tokens."""
        return self.token_bytes * (n if self.most is None else min(n, self.most))


def new_cache(hf: Any) -> Any:
    """A cache with transformers' own kinds of layers, but for those that forget what left their window.

    What a recorder's rules leave is shorter than the text, so that they could not tell what to forget; the recorder does.
    """
    cache = DynamicCache(config=hf.config)
    cache.layers = [_unlimited(layer) for layer in cache.layers]
    return cache


def _unlimited(layer: Any) -> Any:
    if isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer


def held(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds; `thin_keys` are those that lost channels."""
    names = ("keys", "values", "thin_keys")
    found = [getattr(layer, name, None) for layer in cache.layers for name in names]
    return sum(x.nbytes for x in found if x is not None)


def look_at_cache(
    hf: Any, cache: Any, keys: Sequence[Any], windows: Sequence[int | None], n: int
) -> tuple[LayerCache, ...]:
    """What each layer of a cache holds after n tokens, from which its attention read `keys` [1, Hkv, n, D].

    Raises ValueError for a layer that reads keys which no earlier layer has cached, or whose cache forgets what it sees.
    """
    own = DynamicCache(config=hf.config).layers
    found: list[LayerCache] = []
    for i, (read, window) in enumerate(zip(keys, windows, strict=True)):
        layer = cache.layers[i] if i < len(cache.layers) else None
        stored, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if stored is None or values is None or not stored.numel():
            source = next((j for j in range(i) if keys[j].data_ptr() == read.data_ptr()), None)
            if source is None:
                raise ValueError(f"layer {i} reads keys that are in no layer's cache")
            found.append(LayerCache(0, window, source=source))
            continue
        kind = own[i] if i < len(own) else None
        most = kind.sliding_window - 1 if isinstance(kind, DynamicSlidingWindowLayer) else None
        if most is not None and most + 1 != window:
            raise ValueError(
                f"transformers' cache keeps {most} keys of layer {i}, and its mask lets a query see {window or 'all'}"
            )
        bytes_of_one = (stored.nbytes + values.nbytes) // n
        found.append(LayerCache(bytes_of_one, window, most, latent=stored.shape != read.shape))
    return tuple(found)
