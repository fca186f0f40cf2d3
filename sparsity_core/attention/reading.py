"""The decode stage of a pipeline over one text: which keys of its cache each query reads, in every layer, and their record."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sparselens_kernels import NEVER

from sparsity_core.attention.prediction import predicted_query
from sparsity_core.attention.selection import Selected, attend_selected, decode_selected, top_keys
from sparsity_core.kinds import Selector

if TYPE_CHECKING:
    from sparsity_core.attention.offload import Offloaded
    from sparsity_core.models import Model


class Reading:
    """Lets each query from `first` on read a share of its cache, and keeps what it read.

    `selectors` makes a layer's selector, None where the layer reads all; `tokens` is the share of the context that each of
    its queries reads, and every `dense_every`-th position reads all. With `offload` the caches lie in host memory.
    """

    def __init__(
        self,
        model: Model,
        n_tokens: int,
        selectors: Callable[[int], Selector | None],
        tokens: Callable[[int], float],
        *,
        first: int = 0,
        dense_every: int = 0,
        mean_value: bool = False,
        offload: Offloaded | None = None,
    ) -> None:
        self._model, self._n_tokens, self._offload = model, n_tokens, offload
        self._make_selector, self._tokens = selectors, tokens
        self._first, self._dense_every, self._mean_value = first, dense_every, mean_value
        self._selectors: dict[int, Selector | None] = {}
        self.selected: dict[int, Selected] = {}

    def from_host(
        self, layer: int, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: dict[str, Any]
    ) -> torch.Tensor | None:
        """A decode step of a layer whose cache is in host memory, None for another; the next layer's fetch begins first."""
        if self._offload is None or q.shape[2] > 1 or start < self._first:
            return None
        if own["softcap"] is not None or own["window"] is not None:
            raise ValueError(
                "a layer with soft-capped logits or a sliding window cannot be offloaded: leave offload off"
            )
        scale, following = own["scale"], self._selectors.get(layer + 1)
        if following is not None and self._offload.is_host(layer + 1):
            predicted = predicted_query(self._model, layer)
            if predicted is not None:
                self._offload.prefetch(layer + 1, predicted, following, self._share(layer + 1, start), scale)
        selector = self._selectors.get(layer)
        if selector is None or not self._offload.is_host(layer):
            return None
        selector.append(k)
        host, share = self._offload.layers[layer].shape(q), self._share(layer, start)
        index, _, known = top_keys(q, host, selector, share=share, scale=scale, known=self._mean_value)
        self.selected[layer].read(index)
        return self._offload.attend(layer, q, k, v, index, scale, known)

    def attend(
        self,
        layer: int,
        start: int,
        out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        own: dict[str, Any],
        *,
        before: torch.Tensor,
        until: torch.Tensor,
        hidden: Callable[[torch.Tensor, int | None], torch.Tensor | None] | None,
    ) -> torch.Tensor:
        """The forward's output with its decode queries' part replaced by attention over what they select.

        Args:
            start: the position of the forward's first query.
            out: what the queries q [1, H, Tq, D] gave over all of k, v [1, Hkv, Tk, D], with the layer's `own` scale,
                softcap and window.
            before: int64 [1, Hkv, past], the positions that the cache held when this forward began.
            until: int32 [Hkv, T], from which query on each of the text's keys is hidden.
            hidden: for one query over a cache: of the positions [Hkv, Tk] of its keys and the window, those that it may
                not look at, None where it sees all. None where the forward holds the whole text.
        """
        if layer not in self._selectors:
            self._selectors[layer] = self._make_selector(layer)
            self.selected[layer] = Selected.empty(q.shape[1], k.shape[1], self._n_tokens)
        selector, record, n = self._selectors[layer], self.selected[layer], q.shape[2]
        if selector is None:
            return out
        dense, past = min(n, max(0, self._first - start)), k.shape[2] - n
        new = torch.arange(start, start + n, device=k.device).expand(1, k.shape[1], n)
        positions = torch.cat([before, new], dim=2)
        step = hidden is not None and not dense
        unseen = hidden(positions[0], own["window"]) if hidden is not None and step else None
        if step and own["softcap"] is None:
            selector.append(k[:, :, past:])
            out, chosen = decode_selected(
                q, k, v, selector, share=self._share(layer, start), scale=own["scale"],
                visible=None if unseen is None else ~unseen, mean_value=self._mean_value,
            )  # fmt: skip
            group = chosen.columns.shape[1] // k.shape[1]
            record.read(positions.repeat_interleave(group, 1).gather(2, chosen.columns), chosen.n_selected)
            self._follow_channels(selector, q, k, start + 1)
            return out
        gone: torch.Tensor | None = until
        if step:  # the cache's columns are not the text's
            gone = None if unseen is None else torch.where(unseen, 0, NEVER)
            own = {**own, "window": None}
        parts = []
        for begin, end in self._stretches(selector, start, dense, n):
            own_q, seen_k, seen_v = q[:, :, begin:end], k[:, :, : past + end], v[:, :, : past + end]
            selector.append(k[:, :, past + begin : past + end])
            if begin < dense:
                parts.append(out[:, :, begin:end])
            else:
                selected = attend_selected(
                    own_q, seen_k, seen_v, selector, share=self._tokens(layer), start=start + begin,
                    record=record, positions=positions[0], until=None if gone is None else gone[:, : past + end],
                    dense_every=self._dense_every, mean_value=self._mean_value, **own,
                )  # fmt: skip
                parts.append(selected)
            self._follow_channels(selector, own_q, seen_k, start + end)
        return torch.cat(parts, dim=2)

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        """Leaves only these keys [1, Hkv, kept] of a layer, as what was dropped left its cache."""
        selector = self._selectors.get(layer)
        if selector is not None:
            selector.keep(columns)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [S] tokens read, float32 [L, S] share of the calibrated channels still chosen); empty without re-ranking."""
        found = [[] if s is None else s.drift for _, s in sorted(self._selectors.items())]
        steps = next(([read for read, _ in each] for each in found if each), [])
        rows = [[share for _, share in each] if each else [math.nan] * len(steps) for each in found]
        return np.asarray(steps, np.int32), np.asarray(rows, np.float32).reshape(len(found), len(steps))

    def nbytes(self, layer: int) -> int:
        """What a layer's selector holds beside the cache."""
        selector = self._selectors.get(layer)
        return 0 if selector is None else selector.nbytes

    def _share(self, layer: int, position: int) -> float:
        """Of the context, that the query at `position` reads."""
        every = self._dense_every
        return 1.0 if every and position % every == 0 else self._tokens(layer)

    def _stretches(self, selector: Selector, start: int, dense: int, n: int) -> list[tuple[int, int]]:
        """The forward's queries cut where reading densely ends, and where a selector ranks its channels again."""
        every = selector.rerank
        edges = {0, dense, n}
        if every:
            edges |= {p - start for p in range(start + 1, start + n) if p % every == 0}
        return list(pairwise(sorted(edges)))

    def _follow_channels(self, selector: Selector, q: torch.Tensor, k: torch.Tensor, read: int) -> None:
        """Lets a selector that ranks its channels while running count the queries q, whose keys are the last of k."""
        if selector.rerank:
            selector.follow(q, k[:, :, k.shape[2] - q.shape[2] :])
            if read % selector.rerank == 0:
                selector.rank_again(k, read)
