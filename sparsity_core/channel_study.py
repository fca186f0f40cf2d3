"""How well a few channels of each key find the keys that matter, on one text and against the exact attention.

For sampled queries of every layer, with m the exact attention of a KV head's query heads, averaged, and S the keys that
Double Sparsity would read with r channels at a share β of the context (arXiv 2408.07092):

    mass    Σ_{k ∈ S} m_k
    recall  |S ∩ top_{|S|} m| / |S|
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kernels import flash_column_score
from sparsity_core.channel_records import SHARES, STATISTICS, Channels, ChannelStudy, Read
from sparsity_core.channels import calibrate, channels_for
from sparsity_core.method import Progress, silent
from sparsity_core.models import Model
from sparsity_core.record import Enough, recording
from sparsity_core.selection import LabelSelector

_CHANNELS = (4, 8, 16, 32, 64, 128)
_QUERIES = 16


def study_channels(
    model: Model,
    ids: Sequence[int],
    *,
    calibration: str = "auto",
    reduction: str = "softmax",
    progress: Progress = silent,
) -> ChannelStudy:
    """Every statistic, r and share at once, in one forward over the text. Raises ValueError for a text that is too short."""
    calibrated = channels_for(model, calibration, lambda share, doing: progress(0.3 * share, doing))
    recorder = _Study(model, calibrated, _queries(ids), reduction, progress)
    _read(model, ids, recorder)
    mass, recall = (
        np.stack([found[i] for i in range(model.arch.n_layers)], 1) for found in (recorder.mass, recorder.recall)
    )
    progress(1.0, "done")
    return ChannelStudy(recorder.channels, recorder.queries, mass, recall, calibrated, reduction)


def read_at(
    model: Model,
    ids: Sequence[int],
    layer: int,
    *,
    channels: int,
    statistic: str = "qk",
    calibration: str = "auto",
    reduction: str = "softmax",
    progress: Progress = silent,
) -> Read:
    """What one layer's decode steps would read: runs the layers up to it over the text."""
    calibrated = channels_for(model, calibration, progress)
    recorder = _OneLayer(model, calibrated, _queries(ids), layer, channels, statistic, reduction, progress)
    _read(model, ids, recorder)
    assert recorder.found is not None
    return recorder.found


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


def _queries(ids: Sequence[int]) -> np.ndarray:
    """Evenly spaced over the text's later three quarters, the last among them: decode steps have a context."""
    n = len(ids)
    if n < 8:
        raise ValueError(f"the text has {n} tokens: give at least 8, so that there is something to choose from")
    return np.unique(np.linspace(n // 4, n - 1, _QUERIES).round().astype(np.int32))


@torch.inference_mode()
def _read(model: Model, ids: Sequence[int], recorder: _Look) -> None:
    model.check_length(len(ids))
    with recording(recorder), contextlib.suppress(Enough):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)


class _Look:
    """A recorder that looks at the attention of sampled queries."""

    def __init__(
        self, model: Model, calibrated: Channels, queries: np.ndarray, reduction: str, progress: Progress
    ) -> None:
        self.model, self.calibrated, self.queries = model, calibrated, queries
        self.reduction, self.progress = reduction, progress

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        self.progress(0.3 + 0.7 * layer / self.model.arch.n_layers, f"layer {layer + 1} of {self.model.arch.n_layers}")
        rows = torch.from_numpy(self.queries.astype(np.int64)).to(q.device)
        key = torch.arange(k.shape[2], device=q.device)
        visible = key <= rows[:, None]
        if window is not None:
            visible &= key > rows[:, None] - window
        own = q[:, :, rows]
        grouped = own[0].float().view(k.shape[1], -1, len(rows), q.shape[-1]) * scale
        logits = grouped @ k[0].float().transpose(-1, -2)[:, None]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        exact = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1).mean(1)  # [Hkv, P, T]
        self.look(layer, own, k, exact, visible, scale)
        return flash_column_score(q, k, v, scale=scale, softcap=softcap, window=window).out

    def look(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        exact: torch.Tensor,
        visible: torch.Tensor,
        scale: float,
    ) -> None:
        raise NotImplementedError

    def ranks(
        self,
        layer: int,
        statistic: str,
        r: int,
        q: torch.Tensor,
        k: torch.Tensor,
        visible: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """int64 [Hkv, P, T]: the place of each key by the labels' score."""
        order = torch.from_numpy(self.calibrated.order(statistic, layer)[:, :r].copy()).to(k.device)
        selector = LabelSelector(order, "fp16", self.reduction)
        selector.append(k)
        return _places(
            selector.scores(q, k, scale=scale, visible=visible)[0, :, 0].masked_fill(~visible, float("-inf"))
        )


def _places(scores: torch.Tensor) -> torch.Tensor:
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


class _Study(_Look):
    def __init__(
        self, model: Model, calibrated: Channels, queries: np.ndarray, reduction: str, progress: Progress
    ) -> None:
        super().__init__(model, calibrated, queries, reduction, progress)
        self.channels = tuple(r for r in _CHANNELS if r <= model.arch.head_dim)
        self.mass: dict[int, np.ndarray] = {}
        self.recall: dict[int, np.ndarray] = {}

    def look(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        exact: torch.Tensor,
        visible: torch.Tensor,
        scale: float,
    ) -> None:
        n_read = torch.stack([(share * visible.sum(-1)).ceil() for share in SHARES], -1)[None]  # [1, P, share]
        ideal = _places(exact.masked_fill(~visible, -1.0))
        shape = (len(STATISTICS), k.shape[1], len(self.channels), len(SHARES))
        mass, recall = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for i, statistic in enumerate(STATISTICS):
            for j, r in enumerate(self.channels):
                place = self.ranks(layer, statistic, r, q, k, visible, scale)
                for s in range(len(SHARES)):
                    read = place < n_read[..., s, None]
                    both = read & (ideal < n_read[..., s, None])
                    mass[i, :, j, s] = (exact * read).sum(-1).mean(-1).cpu().numpy()
                    recall[i, :, j, s] = (both.sum(-1) / n_read[..., s]).mean(-1).cpu().numpy()
        self.mass[layer], self.recall[layer] = mass, recall


class _OneLayer(_Look):
    def __init__(
        self,
        model: Model,
        calibrated: Channels,
        queries: np.ndarray,
        layer: int,
        channels: int,
        statistic: str,
        reduction: str,
        progress: Progress,
    ) -> None:
        super().__init__(model, calibrated, queries, reduction, progress)
        self.layer, self.n_channels, self.statistic = layer, channels, statistic
        self.found: Read | None = None

    def look(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        exact: torch.Tensor,
        visible: torch.Tensor,
        scale: float,
    ) -> None:
        if layer < self.layer:
            return
        place = self.ranks(layer, self.statistic, self.n_channels, q, k, visible, scale)
        place = place.masked_fill(~visible, k.shape[2])
        self.found = Read(self.queries, exact.cpu().numpy(), place.int().cpu().numpy())
        raise Enough
