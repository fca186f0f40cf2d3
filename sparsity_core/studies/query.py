"""The dense attention of one query, in every layer and head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sparselens_kernels import causal_rows, flash_column_score

from sparsity_core.models import AttentionCall, Model, recording
from sparsity_core.work import Progress, silent


@torch.inference_mode()
def attention_of_last(model: Model, ids: Sequence[int], progress: Progress = silent) -> np.ndarray:
    """float32 [L, H, T]: the dense model's attention of the last of T tokens; a row adds up to 1.

    Raises ValueError for a text that the model cannot read, and whatever `progress` raises to cancel.
    """
    model.check_length(len(ids))
    rows = _LastRows(model, len(ids), progress)
    with recording(rows):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)
    return rows.found


class _LastRows:
    """A recorder of the dense pass that keeps the last query's attention."""

    def __init__(self, model: Model, n: int, progress: Progress) -> None:
        self.found = np.zeros((model.arch.n_layers, model.arch.n_heads, n), np.float32)
        self._progress = progress

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self._progress(call.layer / len(self.found), f"layer {call.layer + 1} of {len(self.found)}")
        last = call.rows(call.n_queries - 1, call.n_queries)
        group = last.q.shape[1] // last.n_kv
        for tile in causal_rows(last.q, last.k, **last.how):
            p = tile.probabilities()[0, :, :, -1].flatten(0, 1).float()
            heads = slice(tile.heads.start * group, tile.heads.stop * group)
            self.found[call.layer, heads, : p.shape[1]] = p.cpu().numpy()
        return flash_column_score(call.q, call.k, call.v, **call.how).out
