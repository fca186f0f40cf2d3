"""Decode selection: which cached keys a query reads, by an approximate score, and what that choice left unread.

A selector lives as long as one layer of one run. It sees each key once, when it enters the cache, and may keep a small
index of it (Double Sparsity's labels); its scores rank the keys for each query, and the best share is read exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sparselens_kernels import EMPTY, KeyMask, attend, causal_rows, reduce_group, sparse_decode

from sparsity_core.kinds import Selector
from sparsity_core.models import AttentionCall


def spread_visible(visible: torch.Tensor, n_lists: int) -> torch.Tensor:
    """[lists or 1, R, C] of visible [Hkv, R, C] or [R, C], for so many lists of channels."""
    return visible[None] if visible.ndim == 2 else visible.repeat_interleave(n_lists // visible.shape[0], 0)


@dataclass
class Selected:
    """What one layer's queries read. Filled in as they come."""

    count: torch.Tensor  # int32 [Hkv, T]: how many queries read each key; of query heads that differ, the mean
    mass: torch.Tensor  # float32 [H, T]: share of the exact attention that each query's selection holds; nan: dense
    recall: torch.Tensor  # float32 [Hkv, T]: share of the exact attention's own top keys that are selected
    chosen: (
        np.ndarray
    )  # uint8 [Hkv, T, bytes]: a bit for each query and key, whether it was read; no bytes where not kept

    @classmethod
    def empty(cls, n_heads: int, n_kv: int, n: int, keeps: bool) -> Selected:
        """The record before the first query. With `keeps` it holds which keys each query reads: n² bits a KV head."""
        nan = float("nan")
        chosen = np.full((n_kv, n, -(-n // 8) if keeps else 0), 255, np.uint8)
        return cls(torch.zeros(n_kv, n), torch.full((n_heads, n), nan), torch.full((n_kv, n), nan), chosen)

    def choose(self, heads: slice, start: int, read: torch.Tensor) -> None:
        """Keeps what queries start … read of the keys before the last of them: bool [KV heads, 1 or G, R, C], by position."""
        rows = self.chosen[heads, start : start + read.shape[2]]
        bits = np.packbits(read.any(1).cpu().numpy(), axis=2)[..., : rows.shape[2]]
        rows[...] = 0
        rows[..., : bits.shape[2]] = bits

    def read(self, at: int, positions: torch.Tensor, count: torch.Tensor | None = None) -> None:
        """Counts the keys of the decode step at position `at`, by position [1, Hkv or H, S]; of each list the first `count`
        [1, Hkv or H], behind which there may be empty slots."""
        n_kv, each = self.count.shape[0], torch.full(positions.shape, self.count.shape[0] / positions.shape[1])
        if count is not None:
            each = each * (torch.arange(positions.shape[2]) < count.cpu()[..., None])
        by_head, each = positions.clamp_min(0).reshape(n_kv, -1).cpu(), each.reshape(n_kv, -1)
        self.count.scatter_add_(1, by_head, each)
        if self.chosen.shape[2]:
            row = torch.zeros(n_kv, at + 1).scatter_add_(1, by_head, each) > 0
            self.choose(slice(None), at, row[:, None, None])


def attend_selected(
    call: AttentionCall,
    selector: Selector,
    *,
    share: float,
    start: int,
    record: Selected,
    positions: torch.Tensor,
    until: torch.Tensor | None = None,
    dense_every: int = 0,
    mean_value: bool = False,
    mask: KeyMask | None = None,
) -> torch.Tensor:
    """Attention of queries `start` … over the share of their visible keys that score best; out [1, H, Tq, Dv].

    The exact attention is computed beside it, to say what was left unread.
    `positions` int64 [Hkv, Tk] are the keys' own in the text, −1 of empty slots; `until` int [Hkv, Tk], by place among the
    Tk as `window` is, hides each from a query on. Queries at multiples of `dense_every` read all.
    `mask` shows each query some of the keys, where the queries are a whole text.
    With `mean_value` what is not read counts with the mean of the visible values, by its share of the approximate scores.
    """
    q, k, v, scale = call.q, call.k, call.v, call.scale
    out = q.new_empty(*q.shape[:3], v.shape[3])
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    hidden, partial = None if until is None else until[None], share < 1.0 or selector.by_scores
    for tile in causal_rows(q, k, **call.how, until=hidden, mask=mask):
        heads, begin, end, p = tile.heads, tile.start, tile.end, tile.probabilities()
        own, columns = slice(heads.start * group, heads.stop * group), past + end
        visible = _visible(call, heads, begin, end, until, mask)
        n_read = selector.count(share, visible.sum(-1))
        if partial:
            approximate = selector.scores(
                q[:, own, begin:end], k[:, heads, :columns], scale=scale, heads=heads, visible=visible
            )[0]
            n_read = selector.count_by(approximate[:, 0], visible) if selector.by_scores else n_read
        if dense_every:
            everything = torch.arange(start + begin, start + end, device=q.device) % dense_every == 0
            n_read = torch.where(everything, visible.sum(-1), n_read)
        if partial:
            read = best_keys(approximate.masked_fill(~visible[:, None], float("-inf")), n_read[:, None])
            ideal = best_keys(reduce_group(p, "sum")[0].masked_fill(~visible, -1.0), n_read)
        else:
            read, ideal = visible[:, None], visible
        mass = (p[0] * read).sum(-1)  # [KV heads, G, R]
        at = slice(start + begin, start + end)
        places = positions[heads, :columns].clamp_min(0).cpu()  # nobody reads an empty slot
        record.count[heads].scatter_add_(1, places, read.float().mean(1).sum(1).cpu())
        if record.chosen.shape[2]:
            record.choose(heads, start + begin, _in_place(read, positions[heads, :columns], start + end))
        record.mass[own, at] = mass.flatten(0, 1).float().cpu()
        record.recall[heads, at] = ((read & ideal[:, None]).sum(-1).float().mean(1) / n_read).cpu()
        if partial:
            p = p * read / mass[None, ..., None].clamp_min(1e-30)
        out[:, own, begin:end] = attend(p, v[:, heads, :columns]) if partial else tile.attend(v)
        if mean_value and share < 1.0:
            seen = approximate.masked_fill(~visible[:, None], 0.0)
            known = (seen * read).sum(-1) / seen.sum(-1)
            mean = visible.to(v.dtype) @ v[0, heads, :columns] / visible.sum(-1, keepdim=True)
            out[:, own, begin:end] = corrected(out[:, own, begin:end], known, mean)
    return out


def _in_place(read: torch.Tensor, positions: torch.Tensor, n: int) -> torch.Tensor:
    """bool [KV heads, 1 or G, R, n] by position in the text, of `read` [KV heads, 1 or G, R, C] by place in the cache."""
    if positions.shape[1] == n and bool((positions[:, 0] != EMPTY).all()):
        return read
    own = positions.remainder(n + 1)[:, None, None].expand(read.shape)  # empty slots behind the last
    return read.new_zeros(*read.shape[:3], n + 1).scatter_(3, own, read)[..., :n]


def _visible(
    call: AttentionCall, heads: slice, begin: int, end: int, until: torch.Tensor | None, mask: KeyMask | None
) -> torch.Tensor:
    """bool [KV heads, R, C]: what queries begin … end − 1 may see of the keys before the last of them."""
    past = call.n_keys - call.n_queries
    key = torch.arange(past + end, device=call.k.device)
    query = key[past + begin :, None]
    visible = (key <= query)[None]
    if call.window is not None:
        visible = visible & (key > query - call.window)
    if until is not None:
        visible = visible & (query < until[heads, None, : past + end])
    visible = visible.expand(heads.stop - heads.start, -1, -1)
    if mask is None:
        return visible
    shown = mask.grouped(mask.rows(past + begin, past + end, key), call.n_kv, heads)
    if shown.shape[1] > 1:
        raise ValueError("a mask that differs by query head cannot go before a decode stage: choose another method")
    return visible & shown[:, 0]


def corrected(out: torch.Tensor, known: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """known · out + (1 − known) · mean: out [1, H, R, D] over what was read, mean [Hkv, R, D] of the values.

    `known` [Hkv, 1 or G, R] is the share of the approximate attention that was read.
    """
    group = out.shape[1] // mean.shape[0]
    share = known.expand(-1, group, -1).flatten(0, 1)[None, ..., None].to(out.dtype)
    return share * out + (1.0 - share) * mean.repeat_interleave(group, 0)[None].to(out.dtype)


def decode_selected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    selector: Selector,
    *,
    share: float,
    scale: float,
    visible: torch.Tensor | None = None,
    mean_value: bool = False,
) -> tuple[torch.Tensor, Chosen]:
    """One decode step [1, H, 1, D] and the keys that it read: only the selection is touched.

    `visible` bool [Hkv, Tk] says what of the cache may be read; all where None.
    """
    chosen = top_keys(q, k, selector, share=share, scale=scale, visible=visible, known=mean_value)
    columns, n_kv, lists = chosen.columns, k.shape[1], chosen.columns.shape[1]
    read_k, read_v = k, v
    if lists > n_kv:  # query heads that choose for themselves: each has rows of its own
        first = torch.arange(lists, device=k.device)[:, None] // (lists // n_kv) * k.shape[2]
        rows = (columns[0] + first).flatten()
        read_k, read_v = (x[0].flatten(0, 1)[rows].view(1, *columns.shape[1:], -1) for x in (k, v))
        columns = torch.arange(columns.shape[2], device=k.device).expand_as(columns)
    heads = q[:, :, 0]
    out = sparse_decode(heads, read_k, read_v, columns, n_selected=chosen.n_selected, scale=scale)[:, :, None]
    if chosen.known is not None:
        mean = v[0].mean(1) if visible is None else (v[0] * visible[..., None]).sum(1) / visible.sum(1, keepdim=True)
        out = corrected(out, chosen.known.view(n_kv, -1, 1), mean[:, None])
    return out, chosen


class Chosen(NamedTuple):
    """What one query reads of the cache."""

    columns: torch.Tensor  # int64 [1, Hkv or H, S], of the cache
    n_selected: torch.Tensor | None  # int64 [1, Hkv or H]: only the first so many of `columns`; all where None
    known: torch.Tensor | None  # [1, Hkv or H]: their share of the approximate scores, where asked; None: all is read


def top_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    selector: Selector,
    *,
    share: float,
    scale: float,
    visible: torch.Tensor | None = None,
    known: bool = False,
) -> Chosen:
    """The share of the cached keys that one query q [1, H, 1, D] reads; of the `visible` [Hkv, Tk] where that is given."""
    n = k.shape[2]
    if visible is None and selector.by_scores:
        visible = torch.ones(k.shape[1], n, dtype=torch.bool, device=k.device)
    if visible is None:
        n_read = int(selector.count(share, torch.tensor(n)))
        if n_read >= n:
            return Chosen(torch.arange(n, device=q.device).expand(*k.shape[:2], -1), None, None)
        scores = selector.scores(q, k, scale=scale)[:, :, :, 0].flatten(1, 2)
        columns = _largest(scores, n_read)
        return Chosen(columns, None, scores.gather(2, columns).sum(-1) / scores.sum(-1) if known else None)
    scores = selector.scores(q, k, scale=scale, visible=visible[:, None])[0, :, :, 0]  # [Hkv, 1 or G, Tk]
    lists = scores.shape[1]
    reads = (
        selector.count_by(scores[:, :1], visible[:, None])[:, 0]
        if selector.by_scores
        else selector.count(share, visible.sum(-1))
    )
    count = reads.repeat_interleave(lists)[None]
    seen = scores.masked_fill(~visible[:, None], float("-inf")).flatten(0, 1)[None]
    top = seen.topk(int(count.max()), dim=-1)
    within = torch.arange(top.values.shape[2], device=q.device) < count[..., None]
    mass = top.values.where(within, 0.0).sum(-1) / seen.where(seen.isfinite(), 0.0).sum(-1) if known else None
    return Chosen(top.indices, count, mass)


def _largest(scores: torch.Tensor, n: int) -> torch.Tensor:
    """int64 [..., n]: where the n largest of the last axis are, in any order."""
    if scores.device.type == "cpu":  # in half of topk's time
        return torch.from_numpy(np.argpartition(scores.numpy(), -n)[..., -n:]).contiguous()
    return scores.topk(n, dim=-1, sorted=False).indices


def best_keys(scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """bool like scores [..., R, C]: the `count` [..., R] largest of each row, exactly so many where they tie."""
    most = int(count.max())
    top = scores.topk(most, dim=-1).indices
    within = torch.arange(most, device=scores.device) < count[..., None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, within.expand_as(top))
