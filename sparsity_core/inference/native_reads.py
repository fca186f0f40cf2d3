"""What a model with an indexer of its own reads: the keys that it chooses for each query, as a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparsity_core.record import Trace

_MOST = 2**30  # bytes of what all layers' queries choose, a byte a pair


@torch.inference_mode()
def native_reads(hf: Any, token_ids: Sequence[int], tokenizer: Any = None) -> Trace:
    """The keys that a DeepSeek-style lightning indexer lets each query of a text read, in one plain forward.

    An indexer chooses `index_topk` keys for all heads of its layer at once; a layer without one reads what the layer before it
    chose (GLM's shared indexers). SparseLens refuses to prune such a model, whose attention is not causal within a window.

    Args:
        hf: a transformers model of the kind, as deepseek_v32 and glm_moe_dsa.
        token_ids: T tokens.
        tokenizer: names the tokens.

    Returns a trace with one KV head a layer whose reads are the choice; what was not measured is nan. Raises ValueError for a
    model whose layers have no such indexer, and for a text whose choices take over 1 GiB.
    """
    n, n_layers = len(token_ids), hf.config.num_hidden_layers
    if n_layers * n * n > _MOST:
        most = int((_MOST / n_layers) ** 0.5)
        raise ValueError(
            f"what {n_layers} layers choose for {n:,} tokens does not fit 1 GiB: give at most {most:,} tokens"
        )
    found: dict[int, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for module in hf.modules():
            if type(module).__name__.endswith("Indexer") and hasattr(module, "index_topk"):
                hooks.callback(module.register_forward_hook(_keeps(found)).remove)
        hf(input_ids=torch.tensor([list(token_ids)], device=hf.device), use_cache=False)
    if 0 not in found:
        raise ValueError(
            f"{hf.config.model_type} has no indexer that chooses keys in its first layer: give a deepseek_v32 or glm_moe_dsa"
        )
    mask = np.zeros((n_layers, 1, n, n), bool)
    for layer in range(n_layers):
        if layer in found:
            np.put_along_axis(mask[layer, 0], found[layer].numpy(), True, axis=1)
        else:
            mask[layer] = mask[layer - 1]
    mask &= np.tri(n, dtype=bool)  # the first queries are given more keys than there are before them
    return Trace.from_kept(
        token_ids,
        mask,
        tokenizer=tokenizer,
        n_heads=hf.config.num_attention_heads,
        method="lightning_indexer",
        model=hf.config.name_or_path or hf.config.model_type,
    )


def _keeps(found: dict[int, torch.Tensor]) -> Any:
    def keep(module: Any, args: Any, chosen: torch.Tensor) -> None:
        found[module.layer_idx] = chosen[0].long().cpu()

    return keep
