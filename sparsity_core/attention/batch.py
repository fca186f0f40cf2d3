"""Several texts in one forward, each followed by a recorder of its own, as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from sparsity_core.attention.recorder import Recorder
from sparsity_core.models import AttentionCall, Model, one_row, recording


def forward(
    model: Model, fed: Sequence[tuple[Recorder, Sequence[int]]], *, use_cache: bool = False
) -> list[torch.Tensor]:
    """The hidden states [n, hidden] of the next n tokens of each text, and each text's recorder moved past them.

    Texts of unequal lengths are padded at their ends, which no token before them sees. Projections and feed-forward blocks read
    their weights once for all texts; attention, caches and everything that a recorder decides are of one text each.
    """
    recorders, feeds = [recorder for recorder, _ in fed], [list(ids) for _, ids in fed]
    lengths = [len(ids) for ids in feeds]
    batch, longest = _Batch(recorders, lengths), max(lengths)
    ids = torch.tensor([[*own, *[0] * (longest - len(own))] for own in feeds])
    how: dict[str, Any] = {"use_cache": use_cache}
    if use_cache:
        starts = torch.tensor([recorder.start for recorder in recorders])
        at = (starts[:, None] + torch.arange(longest)).minimum((starts + torch.tensor(lengths) - 1)[:, None])
        how |= {"past_key_values": batch.cache(), "position_ids": at.to(model.device)}
    with recording(recorders[0] if len(fed) == 1 else batch):
        hidden = model.hidden(ids, **how)
    for recorder, n in zip(recorders, lengths, strict=True):
        recorder.start += n
    return [hidden[row, :n] for row, n in enumerate(lengths)]


class _Batch:
    """Hands each text its own part of every attention call: query i of row b is query i of text b."""

    def __init__(self, recorders: Sequence[Recorder], lengths: Sequence[int]) -> None:
        self.rows = list(zip(recorders, lengths, strict=True))
        self._layers: list[_RowsLayer] = []

    def cache(self) -> Any:
        """What the model is given as its cache: of one text its own, of several one that adds to each text's own."""
        if len(self.rows) == 1:
            return self.rows[0][0].cache
        cache = DynamicCache()
        self._layers = [_RowsLayer(self.rows, i) for i in range(len(self.rows[0][0].calls))]
        cache.layers = list(self._layers)
        return cache

    def attend(self, call: AttentionCall) -> torch.Tensor:
        out = call.q.new_zeros(*call.q.shape[:3], call.v.shape[3])
        for row, (recorder, n) in enumerate(self.rows):
            own, keys = slice(row, row + 1), (call.k[row : row + 1, :, :n], call.v[row : row + 1, :, :n])
            if self._layers:
                keys = self._layers[call.layer].held[row]
            with one_row(row, n):
                part = AttentionCall(call.layer, call.q[own, :, :n], *keys, **call.how)
                out[own, :, :n] = recorder.attend(part)
        return out


class _RowsLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of several caches, of one text each: what is new goes into each, and `held` is what each then holds.

    To transformers it looks empty before every forward, whose masks are then those of its new tokens alone.
    """

    is_sliding = False

    def __init__(self, rows: Sequence[tuple[Recorder, int]], layer: int) -> None:
        super().__init__()
        self._rows, self._layer = rows, layer
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.held = [
            recorder.cache.layers[self._layer].update(
                key_states[row : row + 1, :, :n], value_states[row : row + 1, :, :n]
            )
            for row, (recorder, n) in enumerate(self._rows)
        ]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1
