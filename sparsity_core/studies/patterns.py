"""The dense attention of one layer over a text, on demand, pooled to blocks while it is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from sparselens_kernels import causal_rows, flash_column_score

from sparsity_core.models import AttentionCall, Enough, Model, recording
from sparsity_core.studies.attention_look import AttentionLook
from sparsity_core.work import Progress, silent


@torch.inference_mode()
def look_at_attention(
    model: Model,
    ids: Sequence[int],
    layer: int,
    block: int,
    progress: Progress = silent,
) -> AttentionLook:
    """Runs the layers up to `layer` over the text, and pools that one's attention to blocks of `block` tokens.

    Raises ValueError for a layer or a block that is none, and whatever `progress` raises to cancel.
    """
    if not 0 <= layer < model.arch.n_layers:
        raise ValueError(f"{model.name} has layers 0 to {model.arch.n_layers - 1}; got {layer}")
    if block < 1:
        raise ValueError(f"a block has at least 1 token; got {block}")
    model.check_length(len(ids))
    pools = _Pools(layer, block, progress)
    with recording(pools), contextlib.suppress(Enough):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)
    return AttentionLook(layer, block, pools.blocks, pools.importance)


class _Pools:
    """A recorder of the dense pass that ends at one layer, whose attention it pools."""

    def __init__(self, layer: int, block: int, progress: Progress) -> None:
        self._layer, self._block, self._progress = layer, block, progress
        self.blocks = self.importance = np.zeros((0, 0), np.float32)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self._progress(
            call.layer / (self._layer + 1),
            f"layer {call.layer + 1} of {self._layer + 1}",
        )
        if call.layer < self._layer:
            return flash_column_score(call.q, call.k, call.v, **call.how).out
        n, n_kv, device = call.n_keys, call.n_kv, call.q.device
        of = torch.arange(n, device=device) // self._block
        side = int(of[-1]) + 1
        blocks = torch.zeros(n_kv, side, side, device=device)
        given = torch.zeros(n_kv, n, device=device)
        for tile in causal_rows(call.q, call.k, **call.how):
            p = tile.probabilities()[0].mean(1).float()  # [KV heads, R, C]
            given[tile.heads, : p.shape[2]] += p.sum(1)
            rows = p.new_zeros(p.shape[0], side, p.shape[2]).index_add_(1, of[tile.start : tile.end], p)
            blocks[tile.heads].index_add_(2, of[: p.shape[2]], rows)
        queries = torch.bincount(of)
        key = torch.arange(n, device=device)
        could = n - key if call.window is None else torch.minimum(n - key, key.new_tensor(call.window))
        self.blocks = (blocks / queries[:, None]).cpu().numpy()
        self.importance = (given / could).cpu().numpy()
        raise Enough
