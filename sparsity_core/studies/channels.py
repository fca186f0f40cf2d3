"""How well a few channels of each key find the keys that matter, on one text and against the exact attention.

For sampled queries of every layer, with m the exact attention of a KV head's query heads, averaged, and S the keys that
Double Sparsity would read with r channels at a share β of the context (arXiv 2408.07092):

    mass    Σ_{k ∈ S} m_k
    recall  |S ∩ top_{|S|} m| / |S|
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sparselens_kernels import flash_column_score, logits

from sparsity_core.methods.decode.double_sparsity.calibration import calibrate, channels_for
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector
from sparsity_core.models import AttentionCall, Enough, Model, recording
from sparsity_core.studies.channel_records import SHARES, ChannelStudy, Read, channel_counts
from sparsity_core.work import Progress, silent

_QUERIES = 16


def study_channels(
    model: Model, ids: Sequence[int], *, calibration: str = "auto", progress: Progress = silent
) -> ChannelStudy:
    """Every statistic, r and share at once, in one forward over the text. Raises ValueError for a text that is too short."""
    calibrated = channels_for(model, calibration, lambda share, doing: progress(0.3 * share, doing))
    counts, mass, recall = channel_counts(model.arch.head_dim), [], []

    def look(sample: _Sample) -> None:
        n_read = torch.stack([(share * sample.visible.sum(-1)).ceil() for share in SHARES], -1)[None]  # [1, P, share]
        ideal = _places(sample.exact.masked_fill(~sample.visible, -1.0))
        shape = (len(STATISTICS), len(ideal), len(counts), len(SHARES))
        mass.append(np.zeros(shape, np.float32))
        recall.append(np.zeros(shape, np.float32))
        for i, statistic in enumerate(STATISTICS):
            for j, r in enumerate(counts):
                place = sample.places(calibrated, statistic, r)
                for s in range(len(SHARES)):
                    read = place < n_read[..., s, None]
                    both = read & (ideal < n_read[..., s, None])
                    mass[-1][i, :, j, s] = (sample.exact * read).sum(-1).mean(-1).cpu().numpy()
                    recall[-1][i, :, j, s] = (both.sum(-1) / n_read[..., s]).mean(-1).cpu().numpy()

    queries = _read(model, ids, look, progress)
    progress(1.0, "every layer is measured")
    return ChannelStudy(counts, queries, np.stack(mass, 1), np.stack(recall, 1))


def read_at(
    model: Model,
    ids: Sequence[int],
    layer: int,
    *,
    channels: int,
    statistic: str = "qk",
    calibration: str = "auto",
    progress: Progress = silent,
) -> Read:
    """What one layer's decode steps would read: runs the layers up to it over the text."""
    calibrated = channels_for(model, calibration, progress)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def look(sample: _Sample) -> None:
        if sample.layer == layer:
            place = sample.places(calibrated, statistic, channels).masked_fill(~sample.visible, len(ids))
            found.append((sample.exact.cpu().numpy(), place.int().cpu().numpy()))
            raise Enough

    queries = _read(model, ids, look, progress)
    return Read(queries, *found[0])


def stability(model: Model, *, seeds: int = 3, channels: int = 16, progress: Progress = silent) -> dict[str, Any]:
    """Share of the top channels that calibrations on other random stretches of the text choose too, by statistic."""
    found = []
    for seed in range(seeds):
        progress(seed / seeds, f"calibrating with seed {seed}")
        found.append(calibrate(model, seed=seed))
    shared = {
        name: round(float(np.mean([found[0].overlap(other, name, name, channels).mean() for other in found[1:]])), 4)
        for name in STATISTICS
    }
    return {"seeds": seeds, "channels": channels, "shared": shared}


def _read(model: Model, ids: Sequence[int], look: Callable[[_Sample], None], progress: Progress) -> np.ndarray:
    """Shows `look` each layer's attention of sampled queries, and returns their positions, int32 [P].

    They lie evenly over the text's later three quarters, the last among them: decode steps have a context.
    """
    n = len(ids)
    if n < 8:
        raise ValueError(f"the text has {n} tokens: give at least 8, so that there is something to choose from")
    model.check_length(n)
    queries = np.unique(np.linspace(n // 4, n - 1, _QUERIES).round().astype(np.int32))
    recorder = _Look(model.arch.n_layers, torch.from_numpy(queries.astype(np.int64)), look, progress)
    with torch.inference_mode(), recording(recorder), contextlib.suppress(Enough):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)
    return queries


@dataclass(frozen=True, eq=False)
class _Sample:
    """One layer's attention of P sampled queries."""

    layer: int
    q: torch.Tensor  # [1, H, P, D]
    k: torch.Tensor  # [1, Hkv, T, D]
    exact: torch.Tensor  # [Hkv, P, T], the mean over the query heads
    visible: torch.Tensor  # bool [P, T]
    scale: float

    def places(self, calibrated: Channels, statistic: str, r: int) -> torch.Tensor:
        """int64 [Hkv, P, T]: the place of each key by the score of its labels."""
        order = torch.from_numpy(calibrated.order(statistic, self.layer)[:, :r].copy()).to(self.k.device)
        selector = LabelSelector(order, "fp16", "softmax")
        selector.append(self.k)
        scores = selector.scores(self.q, self.k, scale=self.scale, visible=self.visible)[0, :, 0]
        return _places(scores.masked_fill(~self.visible, float("-inf")))


class _Look:
    """A recorder that hands on what sampled queries attend to."""

    def __init__(
        self, n_layers: int, queries: torch.Tensor, look: Callable[[_Sample], None], progress: Progress
    ) -> None:
        self._n_layers, self._queries, self._look, self._progress = n_layers, queries, look, progress

    def attend(self, call: AttentionCall) -> torch.Tensor:
        q, k, layer = call.q, call.k, call.layer
        self._progress(0.3 + 0.7 * layer / self._n_layers, f"layer {layer + 1} of {self._n_layers}")
        rows = self._queries.to(q.device)
        key = torch.arange(k.shape[2], device=q.device)
        visible = key <= rows[:, None]
        if call.window is not None:
            visible &= key > rows[:, None] - call.window
        own = q[:, :, rows]
        exact = torch.softmax(
            logits(own, k, call.scale, call.softcap)[0].masked_fill(~visible, float("-inf")), dim=-1
        ).mean(1)
        self._look(_Sample(layer, own, k, exact, visible, call.scale))
        return flash_column_score(q, k, call.v, **call.how).out


def _places(scores: torch.Tensor) -> torch.Tensor:
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
