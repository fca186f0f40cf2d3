"""Decode selection: which cached keys a query reads, by an approximate score, and what that choice left unread.

A selector lives as long as one layer of one run. It sees each key once, when it enters the cache, and may keep a small
index of it (Double Sparsity's labels); its scores rank the keys for each query, and the best share is read exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from kernels import Labels, dequantise, label_scores, quantise, sparse_decode
from kernels.rows import attend, causal_rows, reduce_group

_ALL = slice(None)
_ROOM = 256  # tokens by which a label cache grows
_ROUNDING = 1e-9  # 0.07 of 100 keys is 7, whatever a product of floats says


class Selector(Protocol):
    """One layer's index of the cache. Axes: B batch, Hkv KV heads, G query heads each, R queries, C keys."""

    def append(self, k: torch.Tensor) -> None:
        """Takes the keys that enter the cache, [B, Hkv, new, D]."""

    def keep(self, columns: torch.Tensor) -> None:
        """Leaves only these keys, [B, Hkv, kept], as an eviction left only them in the cache."""

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = _ALL,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, Hkv, 1 or G, R, C] of queries q [B, H, R, D] against the cache's keys k [B, Hkv, C, D], all or its first.

        `heads` are the KV heads that q and k hold, where not all; `scale` is that of the model's logits. `visible` bool
        [Hkv, R, C] or [R, C] says what each query may see; all where None.
        """

    @property
    def nbytes(self) -> int:
        """What the index holds beside the cache."""


class LabelSelector:
    """Double Sparsity's label cache: a few channels of every key, in few bits (arXiv 2408.07092)."""

    def __init__(self, channels: torch.Tensor, dtype: str, reduction: str, rerank: int = 0) -> None:
        self._channels = channels  # int64 [Hkv, r], or [H, r] where each query head has its own
        self._calibrated = channels
        self._dtype, self._reduction = dtype, reduction
        self.rerank = rerank  # tokens from one ranking of the channels to the next; 0: the calibration's stays
        self._seen: torch.Tensor | None = None  # Σ |q ⊙ k| of tokens with themselves, [Hkv or H, D]
        self.drift: list[tuple[int, float]] = []  # (tokens read, share of the calibrated channels still chosen)
        # Channel by channel, so that a product reads along the tokens, with room for more: [B, lists, r, room], [B, lists, room].
        self._values: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None
        self._n = 0  # keys labelled
        self._lists = 1  # of channels, per KV head

    def follow(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Counts what some tokens' queries q [1, H, R, D] and keys k [1, Hkv, R, D] have in each channel."""
        lists = self._channels.shape[0]
        product = (q[0].float().unflatten(0, (k.shape[1], -1)) * k[0].float()[:, None]).abs().sum(2)  # [Hkv, G, D]
        own = product.flatten(0, 1) if lists == q.shape[1] else product.mean(1)
        self._seen = own if self._seen is None else self._seen + own

    def rank_again(self, k: torch.Tensor, read: int) -> None:
        """Chooses the channels by what `follow` counted, and labels the cache's keys k [1, Hkv, C, D] anew."""
        assert self._seen is not None
        r = self._channels.shape[1]
        chosen = self._seen.topk(r, dim=-1).indices
        stay = (chosen[:, :, None] == self._calibrated[:, None]).any(-1).float().mean()
        self.drift.append((read, float(stay)))
        self._channels, self._n = chosen, 0
        self.append(k)

    def append(self, k: torch.Tensor) -> None:
        self._lists = self._channels.shape[0] // k.shape[1]
        own = k.repeat_interleave(self._lists, 1)
        new = quantise(
            own.gather(3, self._channels[None, :, None].expand(own.shape[0], -1, own.shape[2], -1)), self._dtype
        )
        self._put(new)

    def keep(self, columns: torch.Tensor) -> None:
        labels = self._held()
        index = columns.repeat_interleave(labels.values.shape[1] // columns.shape[1], 1)
        values = labels.values.gather(2, index[..., None].expand(*index.shape, labels.values.shape[3]))
        scale = None if labels.scale is None else labels.scale.gather(2, index)
        self._n = 0
        self._put(Labels(values, scale, self._dtype))

    def _put(self, new: Labels) -> None:
        end = self._n + new.values.shape[2]
        self._values = _with_room(self._values, new.values.transpose(-1, -2), self._n, end)
        if new.scale is not None:
            self._scale = _with_room(self._scale, new.scale, self._n, end)
        self._n = end

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = _ALL,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        (batch, n_heads, rows, _), (n_kv, n) = q.shape, k.shape[1:3]
        labels, channels = self._of(heads, n)
        n_lists = channels.shape[0]
        spread = channels.repeat_interleave(n_heads // n_lists, 0)[None, :, None].expand(batch, -1, rows, -1)
        own_q, softmax = q.gather(3, spread), self._reduction == "softmax"
        if rows == 1:
            found = label_scores(own_q[:, :, 0], labels, reduction="none" if softmax else self._reduction, scale=scale)
            found = found.view(batch, n_lists, -1, 1, n)
        else:
            grouped = own_q.float().view(batch, n_lists, -1, rows, own_q.shape[-1]) * scale
            keys = dequantise(labels).transpose(-1, -2)[:, :, None]
            if softmax:
                found = grouped @ keys
            elif self._reduction == "max":
                found = (grouped @ keys).amax(2, keepdim=True)
            else:  # linear: over the queries before the product, as label_scores does
                found = reduce_group(grouped, self._reduction)[:, :, None] @ keys
        if softmax:
            if visible is not None:
                found = found.masked_fill(~_spread(visible, n_lists)[:, None], float("-inf"))
            found = torch.softmax(found, dim=-1).sum(2, keepdim=True)
        return found.view(batch, n_kv, -1, rows, n)

    @property
    def nbytes(self) -> int:
        return 0 if self._values is None else self._held().nbytes

    def _held(self) -> Labels:
        if self._values is None:
            raise RuntimeError("no key has entered the label cache")
        scale = None if self._scale is None else self._scale[..., : self._n]
        return Labels(self._values[..., : self._n].transpose(-1, -2), scale, self._dtype)

    def _of(self, heads: slice, n: int) -> tuple[Labels, torch.Tensor]:
        """The labels of some KV heads' first n keys, and the heads' channels."""
        labels = self._held()
        if heads == _ALL and n == labels.values.shape[2]:
            return labels, self._channels
        lists = slice(*(None if i is None else i * self._lists for i in (heads.start, heads.stop)))
        scale = None if labels.scale is None else labels.scale[:, lists, :n]
        return Labels(labels.values[:, lists, :n], scale, labels.dtype), self._channels[lists]


class QuerySelector:
    """SparQ: the channels in which each query itself is largest, no index kept (arXiv 2312.04985).

    s = softmax(q_r · K / √(D · ‖q_r‖₁ / ‖q‖₁)), summed over the query heads of a KV head.
    """

    nbytes = 0

    def __init__(self, channels: int, reduction: str) -> None:
        self._n, self._reduction = channels, reduction

    def append(self, k: torch.Tensor) -> None:
        pass

    def keep(self, columns: torch.Tensor) -> None:
        pass

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = _ALL,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, _, rows, dim = q.shape
        size = q.float().abs()
        top = size.topk(min(self._n, dim), dim=-1).indices
        part = torch.zeros_like(size).scatter_(3, top, q.float().gather(3, top))
        share = part.abs().sum(-1, keepdim=True) / size.sum(-1, keepdim=True).clamp_min(1e-20)
        part = part / (dim * share).clamp_min(1e-20).sqrt()
        logits = part.view(batch, k.shape[1], -1, rows, dim) @ k.float().transpose(-1, -2)[:, :, None]
        if visible is not None:
            logits = logits.masked_fill(~_spread(visible, k.shape[1])[:, None], float("-inf"))
        p = torch.softmax(logits, dim=-1)
        return reduce_group(p, self._reduction)[:, :, None]


class PageSelector:
    """Quest: an upper bound of any logit in a page of keys, from the page's extremes (arXiv 2406.10774).

    b = Σ_c max(q_c · min_c, q_c · max_c); the page that is still being filled is always read.
    """

    def __init__(self, page: int, reduction: str) -> None:
        self._page, self._reduction = page, reduction
        self._bytes = 0

    def append(self, k: torch.Tensor) -> None:
        self._bytes += 2 * k.nbytes // self._page

    def keep(self, columns: torch.Tensor) -> None:
        raise ValueError("pages of keys cannot be combined with an eviction method: choose another decode method")

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = _ALL,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, _, rows, dim = q.shape
        n_kv, n = k.shape[1:3]
        whole = n // self._page
        pages = k[:, :, : whole * self._page].float().view(batch, n_kv, whole, self._page, dim)
        low, high = pages.amin(3).transpose(-1, -2)[:, :, None], pages.amax(3).transpose(-1, -2)[:, :, None]
        grouped = q.float().view(batch, n_kv, -1, rows, dim)
        bound = grouped.clamp_min(0) @ high + grouped.clamp_max(0) @ low  # [B, Hkv, G, R, pages]
        # A page's rank and then the place in it, so that no two keys tie and a page is read from its beginning.
        rank = reduce_group(bound, self._reduction).argsort(dim=-1, stable=True).argsort(-1)
        place = torch.arange(self._page, device=q.device)
        ordered = (rank[..., None] * self._page + (self._page - 1 - place)).flatten(-2).float()
        found = torch.nn.functional.pad(ordered, (0, n - whole * self._page))
        key = torch.arange(n, device=q.device)
        query = n - rows + torch.arange(rows, device=q.device)[:, None]
        filling = key >= (query // self._page) * self._page
        return torch.where(filling, (n + key).float(), found)[:, :, None]  # above every whole page, the newest first

    @property
    def nbytes(self) -> int:
        return self._bytes


def _with_room(buffer: torch.Tensor | None, new: torch.Tensor, n: int, end: int) -> torch.Tensor:
    """The buffer [..., room] with `new` at n … end of its last axis; a larger one where it is full."""
    if buffer is None or buffer.shape[-1] < end:
        larger = new.new_empty(*new.shape[:-1], -(-end // _ROOM) * _ROOM)
        if buffer is not None:
            larger[..., :n] = buffer[..., :n]
        buffer = larger
    buffer[..., n:end] = new
    return buffer


def _spread(visible: torch.Tensor, n_lists: int) -> torch.Tensor:
    """[lists or 1, R, C] of visible [Hkv, R, C] or [R, C], for so many lists of channels."""
    return visible[None] if visible.ndim == 2 else visible.repeat_interleave(n_lists // visible.shape[0], 0)


@dataclass
class Selected:
    """What one layer's queries read. Filled in as they come."""

    count: torch.Tensor  # int32 [Hkv, T]: how many queries read each key; of query heads that differ, the mean
    mass: torch.Tensor  # float32 [H, T]: share of the exact attention that each query's selection holds; nan: dense
    recall: torch.Tensor  # float32 [Hkv, T]: share of the exact attention's own top keys that are selected

    @classmethod
    def empty(cls, n_heads: int, n_kv: int, n: int) -> Selected:
        nan = float("nan")
        return cls(torch.zeros(n_kv, n), torch.full((n_heads, n), nan), torch.full((n_kv, n), nan))

    def read(self, positions: torch.Tensor, count: torch.Tensor | None = None) -> None:
        """Counts the keys of one decode step, by position [1, Hkv or H, S]; of each list the first `count` [1, Hkv or H]."""
        n_kv, each = self.count.shape[0], torch.full(positions.shape, self.count.shape[0] / positions.shape[1])
        if count is not None:
            each = each * (torch.arange(positions.shape[2]) < count.cpu()[..., None])
        self.count.scatter_add_(1, positions.reshape(n_kv, -1).cpu(), each.reshape(n_kv, -1))


def attend_selected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    selector: Selector,
    *,
    share: float,
    start: int,
    record: Selected,
    positions: torch.Tensor,
    until: torch.Tensor | None = None,
    dense_every: int = 0,
    mean_value: bool = False,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of queries `start` … over the share of their visible keys that score best; out [1, H, Tq, D].

    q holds the last Tq of the Tk positions. The exact attention is computed beside it, to say what was left unread.
    `positions` int64 [Hkv, Tk] are the keys' own in the text; `until` int [Hkv, Tk], by place among the Tk as `window` is,
    hides each from a query on. Queries at multiples of `dense_every` read all.
    With `mean_value` what is not read counts with the mean of the visible values, by its share of the approximate scores.
    """
    out = q.new_empty(*q.shape[:3], v.shape[3])
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    key = torch.arange(k.shape[2], device=q.device)
    hidden = None if until is None else until[None]
    for tile in causal_rows(q, k, scale=scale, softcap=softcap, window=window, until=hidden):
        heads, begin, end, p = tile.heads, tile.start, tile.end, tile.probabilities()
        own, columns = slice(heads.start * group, heads.stop * group), past + end
        query = torch.arange(past + begin, columns, device=q.device)[:, None]
        visible = (key[:columns] <= query)[None]
        if window is not None:
            visible = visible & (key[:columns] > query - window)
        if until is not None:
            visible = visible & (query < until[heads, None, :columns])
        visible = visible.expand(p.shape[1], -1, -1)  # [KV heads, R, C]
        n_read = _reads(share, visible.sum(-1))
        if dense_every:
            everything = torch.arange(start + begin, start + end, device=q.device) % dense_every == 0
            n_read = torch.where(everything, visible.sum(-1), n_read)
        if share < 1.0:
            approximate = selector.scores(
                q[:, own, begin:end], k[:, heads, :columns], scale=scale, heads=heads, visible=visible
            )[0]
            read = _best(approximate.masked_fill(~visible[:, None], float("-inf")), n_read[:, None])
            ideal = _best(reduce_group(p, "sum")[0].masked_fill(~visible, -1.0), n_read)
        else:
            read, ideal = visible[:, None], visible
        mass = (p[0] * read).sum(-1)  # [KV heads, G, R]
        at = slice(start + begin, start + end)
        record.count[heads].scatter_add_(1, positions[heads, :columns].cpu(), read.float().mean(1).sum(1).cpu())
        record.mass[own, at] = mass.flatten(0, 1).float().cpu()
        record.recall[heads, at] = ((read & ideal[:, None]).sum(-1).float().mean(1) / n_read).cpu()
        if share < 1.0:
            p = p * read / mass[None, ..., None].clamp_min(1e-30)
        out[:, own, begin:end] = tile.attend(v) if share == 1.0 else attend(p, v[:, heads, :columns])
        if mean_value and share < 1.0:
            seen = approximate.masked_fill(~visible[:, None], 0.0)
            known = (seen * read).sum(-1) / seen.sum(-1)
            mean = visible.to(v.dtype) @ v[0, heads, :columns] / visible.sum(-1, keepdim=True)
            out[:, own, begin:end] = corrected(out[:, own, begin:end], known, mean)
    return out


def corrected(out: torch.Tensor, known: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """out [1, H, R, D] over what was read, mixed with the mean value [Hkv, R, D] by what it knows of, [Hkv, 1 or G, R]."""
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
    read_k, read_v, n_kv = k, v, k.shape[1]
    if chosen.columns.shape[1] > n_kv:  # query heads that choose for themselves: an accuracy reference, no saving
        read_k, read_v = (x.repeat_interleave(chosen.columns.shape[1] // n_kv, 1) for x in (k, v))
    out = sparse_decode(q[:, :, 0], read_k, read_v, chosen.columns, n_selected=chosen.n_selected, scale=scale)[
        :, :, None
    ]
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
    if visible is None:
        n_read = max(1, math.ceil(share * n - _ROUNDING))
        if n_read >= n:
            return Chosen(torch.arange(n, device=q.device).expand(1, k.shape[1], -1), None, None)
        scores = selector.scores(q, k, scale=scale)[:, :, :, 0].flatten(1, 2)
        columns = _largest(scores, n_read)
        return Chosen(columns, None, scores.gather(2, columns).sum(-1) / scores.sum(-1) if known else None)
    scores = selector.scores(q, k, scale=scale, visible=visible[:, None])[0, :, :, 0]  # [Hkv, 1 or G, Tk]
    lists = scores.shape[1]
    count = _reads(share, visible.sum(-1)).repeat_interleave(lists)[None]
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


def _reads(share: float, n: torch.Tensor) -> torch.Tensor:
    """int64: how many of n keys a share of them is, rounded up, at least one."""
    return (share * n.double() - _ROUNDING).ceil().clamp_min(1).long()


def _best(scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """bool like scores [..., R, C]: the `count` [..., R] largest of each row, exactly so many where they tie."""
    most = int(count.max())
    top = scores.topk(most, dim=-1).indices
    within = torch.arange(most, device=scores.device) < count[..., None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, within.expand_as(top))
