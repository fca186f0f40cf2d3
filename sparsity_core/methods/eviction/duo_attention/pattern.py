"""DuoAttention's patterns: how much each KV head needs keys that are neither sinks nor recent."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sparsity_core.kinds import LayerShape
from sparsity_core.models import AttentionCall, Model, calibration_text, recording, windows

_LENGTH, _BLOCKS = 512, 4
_LETTERS = 100_000  # of the calibration text, which is long
_MOST_RECENT = 128  # of a measured pattern: a stretch of 512 has to have keys outside
_measured: WeakKeyDictionary[Model, dict[tuple[int, int], np.ndarray]] = WeakKeyDictionary()


def head_scores(source: str, layer: LayerShape, n_sink: int, recent: int) -> np.ndarray:
    """float64 [L, Hkv]: of a file, or "auto": measured on the layer's model. Raises ValueError for another model's."""
    if source != "auto":
        return _read(source, layer.n_layers, layer.n_kv_heads)
    if layer.model is None:
        raise ValueError("duo_attention: pattern=auto is measured on a model: give a file of scores, or run it on one")
    known, recent = _measured.setdefault(layer.model, {}), min(recent, _MOST_RECENT)
    if (n_sink, recent) not in known:
        known[n_sink, recent] = measure(layer.model, n_sink, recent)
    return known[n_sink, recent]


def kept_whole(scores: np.ndarray, share: float) -> np.ndarray:
    """bool like scores: the highest ones, so many of all; where they tie, those of lower layers."""
    order = np.argsort(-scores, axis=None, kind="stable")[: round(share * scores.size)]
    whole = np.zeros(scores.size, bool)
    whole[order] = True
    return whole.reshape(scores.shape)


@torch.inference_mode()
def measure(model: Model, n_sink: int, recent: int) -> np.ndarray:
    """float64 [L, Hkv]: the mean share of attention that goes to keys which are neither sinks nor among the last `recent`.

    The mean is over the query heads of a KV head and the queries of the calibration text's stretches.
    """
    listener = _Lost(n_sink, recent)
    length = min(_LENGTH, model.arch.max_positions)
    for ids in windows(model, calibration_text()[:_LETTERS], count=_BLOCKS, length=length, seed=0):
        with recording(listener):
            model.hidden(ids[None], use_cache=False)
    return np.stack([listener.lost[i] for i in sorted(listener.lost)]) / _BLOCKS


class _Lost:
    """A recorder of the dense pass that adds up the attention to what a streaming head does not hold."""

    def __init__(self, n_sink: int, recent: int) -> None:
        self._n_sink, self._recent = n_sink, recent
        self.lost: dict[int, Any] = {}

    def attend(self, call: AttentionCall) -> torch.Tensor:
        from sparselens_kernels import attend, causal_rows

        out = call.q.new_empty(*call.q.shape[:3], call.v.shape[3])
        group = call.q.shape[1] // call.n_kv
        found = np.zeros(call.n_kv)
        for tile in causal_rows(call.q, call.k, **call.how):
            p = tile.probabilities()  # [1, KV heads, G, R, C]
            key = torch.arange(p.shape[4], device=p.device)
            query = torch.arange(tile.start, tile.end, device=p.device)[:, None]
            outside = (key >= self._n_sink) & (key <= query - self._recent)
            found[tile.heads] += (p * outside).sum((0, 2, 3, 4)).double().cpu().numpy() / (group * call.n_queries)
            own = slice(tile.heads.start * group, tile.heads.stop * group)
            out[:, own, tile.start : tile.end] = attend(p, call.v[:, tile.heads, : p.shape[4]])
        self.lost[call.layer] = self.lost.get(call.layer, 0.0) + found
        return out


def _read(path: str, n_layers: int, n_kv_heads: int) -> np.ndarray:
    try:
        scores = np.loadtxt(path, dtype=np.float64, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"duo_attention: cannot read the pattern {path}: a line for each layer, numbers with a tab between them ({error})"
        ) from None
    if scores.shape != (n_layers, n_kv_heads):
        raise ValueError(
            f"duo_attention: the pattern {path} is of {scores.shape[0]} layers of {scores.shape[1]} KV heads and the model has "
            f"{n_layers} of {n_kv_heads}: it is another model's"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"duo_attention: the pattern {path} holds scores that are no numbers")
    return scores
