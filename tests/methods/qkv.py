"""The queries, keys and values of every layer of a dense forward, and what a trace says stayed after a query."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsity_core.models import AttentionCall, Model, recording

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q [H, T, D], k [Hkv, T, D], v [Hkv, T, D], float64


def dense_qkv(model: Model, ids: list[int]) -> list[Layer]:
    """Of each layer, as its attention gets them."""

    class Listener:
        def __init__(self) -> None:
            self.seen: list[Layer] = []

        def attend(self, call: AttentionCall) -> torch.Tensor:
            self.seen.append((call.q[0].double(), call.k[0].double(), call.v[0].double()))
            return scaled_dot_product_attention(
                call.q, call.k, call.v, is_causal=True, scale=call.scale, enable_gqa=True
            )

    listener = Listener()
    with torch.inference_mode(), recording(listener):
        model.hidden(torch.tensor([ids]), use_cache=False)
    return listener.seen


def kept_after(trace, layer: int, head: int, query: int) -> list[int]:
    """The keys that one KV head holds once the query has been read."""
    gone_at = trace.evicted_at[layer, head, : query + 1]
    return np.flatnonzero(gone_at > query + 1).tolist()


def best(scores: dict[int, float], n: int) -> list[int]:
    """The n keys of the highest scores, in order of position."""
    return sorted(sorted(scores, key=lambda key: scores[key], reverse=True)[:n])
