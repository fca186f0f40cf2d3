"""Causal attention a block of query rows at a time: what every reference is written in.

Shapes: B batch, Hkv KV heads, G query heads per KV head, R rows (queries) of a block, C columns (keys).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

_TILE_ELEMENTS = 1_179_648  # of logits: 4.5 MiB of float32, which stay in the caches
_TILE_ROWS = 256  # at most


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and softmax are float32; a float64 model keeps float64."""
    return torch.promote_types(dtype, torch.float32)


def logits(
    q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """q [B, H, R, D], k [B, Hkv, C, D] → scaled logits [B, Hkv, G, R, C] in the accumulator's dtype, in `out` if given."""
    batch, n_heads, rows, dim = q.shape
    n_kv, columns = k.shape[1], k.shape[2]
    group = n_heads // n_kv
    dtype = accumulator_dtype(q.dtype)
    q = q.to(dtype) if scale == 1.0 else q.to(dtype) * scale
    q_flat = q.reshape(batch * n_kv, group * rows, dim)
    k_flat = k.to(dtype).reshape(batch * n_kv, columns, dim)
    flat = None if out is None else out.view(batch * n_kv, group * rows, columns)
    found = torch.bmm(q_flat, k_flat.transpose(-1, -2), out=flat)
    if softcap is not None:
        found.div_(softcap).tanh_().mul_(softcap)
    return found.view(batch, n_kv, group, rows, columns)


def attend(probabilities: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """P [B, Hkv, G, R, C], v [B, Hkv, C, Dv] → [B, H, R, Dv] in v's dtype."""
    batch, n_kv, group, rows, columns = probabilities.shape
    flat = probabilities.reshape(batch, n_kv, group * rows, columns)
    return torch.matmul(flat, v.to(flat.dtype)).view(batch, n_kv * group, rows, -1).to(v.dtype)


@dataclass(frozen=True, eq=False)
class Tile:
    """Softmax rows of some KV heads before their division: the attention probabilities P are `weights · norm`."""

    heads: slice  # KV heads
    start: int  # queries start … end − 1
    end: int
    weights: torch.Tensor  # [B, KV heads, G, R, C], C the keys that the last query sees
    norm: torch.Tensor  # [B, KV heads, G, R, 1]

    def probabilities(self) -> torch.Tensor:
        """P [B, KV heads, G, R, C], in memory of its own."""
        return self.weights * self.norm

    def attend(self, v: torch.Tensor) -> torch.Tensor:
        """v [B, Hkv, Tk, Dv] of all heads → the output's rows [B, KV heads · G, R, Dv] in v's dtype."""
        batch, n_kv, group, rows, columns = self.weights.shape
        flat = self.weights.view(batch * n_kv, group * rows, columns)
        own = v[:, self.heads, :columns].to(flat.dtype).reshape(batch * n_kv, columns, -1)
        product = torch.bmm(flat, own).view(batch, n_kv, group, rows, -1)
        return product.mul_(self.norm).view(batch, n_kv * group, rows, -1).to(v.dtype)


def causal_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    until: torch.Tensor | None = None,
) -> Iterator[Tile]:
    """Every query's softmax row, a tile at a time; a tile's weights are overwritten by the next one.

    Queries are the last Tq of the Tk keys. `window` hides the keys at a distance of `window` or more (a sliding-window
    layer), and `until` int32 [B, 1 or Hkv, Tk] a key from that query on; its own query always sees it.
    """
    batch, n_heads, n_queries, _ = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    group, past = n_heads // n_kv, n_keys - n_queries
    together = 1 if q.device.type == "cpu" else n_kv  # a core's cache holds the tile of one head, a GPU wants them all
    per_row = batch * together * group
    size = max(_TILE_ELEMENTS, 16 * per_row * n_keys)
    dtype = accumulator_dtype(q.dtype)
    # Fresh memory for each tile costs as much as its softmax, so all tiles share this.
    scratch = torch.empty(size, dtype=dtype, device=q.device)
    for first in range(0, n_kv, together):
        heads = slice(first, first + together)
        own_q = q[:, first * group : (first + together) * group].to(dtype) * scale
        own_k = k[:, heads].to(dtype)
        start = 0
        while start < n_queries:
            seen = past + start
            room = size // per_row  # rows · (seen + rows) is at most this
            rows = (math.isqrt(seen * seen + 4 * room) - seen) // 2
            end = min(n_queries, start + min(_TILE_ROWS, max(16, rows // 16 * 16)))
            columns = past + end
            shape = (batch, together, group, end - start, columns)
            tile = scratch[: math.prod(shape)].view(shape)
            block = own_q[:, :, start:end], own_k[:, :, :columns]
            logits(*block, 1.0, softcap, out=tile)
            # Subtracting each row's maximum would cost as much again as its exponentials, and few rows ever need it.
            own_until = None if until is None else until[:, heads if until.shape[1] > 1 else slice(None), :columns]
            _hide(tile.exp_(), 0.0, window, own_until)
            total = tile.sum(-1, keepdim=True)
            norm = total.reciprocal()
            lost = (total < 1e-30) | ~(total < 1e30)  # out of the exponential's range
            if lost.any():
                softmax = torch.softmax(_hide(logits(*block, 1.0, softcap), float("-inf"), window, own_until), dim=-1)
                torch.where(lost, softmax, tile, out=tile)
                norm.masked_fill_(lost, 1.0)
            yield Tile(heads, start, end, tile, norm)
            start = end


def _hide(tile: torch.Tensor, value: float, window: int | None, until: torch.Tensor | None) -> torch.Tensor:
    """`tile` [B, Hkv, G, R, C] with `value` where a query, one of the last R keys, may not look; in place."""
    rows, columns = tile.shape[3:]
    seen = columns - rows
    own = tile.view(-1, rows, columns)[..., seen:]
    own.tril_()  # a fourth of the time of a masked fill
    if value:
        own += torch.full((rows, rows), value, dtype=tile.dtype, device=tile.device).triu_(1)
    query = torch.arange(seen, columns, device=tile.device)[:, None]
    if window is not None:
        tile.masked_fill_(torch.arange(columns, device=tile.device) <= query - window, value)
    if until is not None:
        tile.masked_fill_((query >= until[:, :, None])[:, :, None], value)
    return tile


def reduce_group(probabilities: torch.Tensor, reduction: str) -> torch.Tensor:
    """[B, Hkv, G, …] → [B, Hkv, …] over the query heads that share a KV head."""
    if reduction == "max":
        return probabilities.amax(dim=2)
    return probabilities.sum(dim=2) if reduction == "sum" else probabilities.mean(dim=2)


def decayed_sums(
    score: torch.Tensor,
    probabilities: torch.Tensor,
    stops: Sequence[int],
    *,
    decay: float | torch.Tensor,
    reduction: str,
    weight: torch.Tensor | None,
    first: int = 0,
    norm: torch.Tensor | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """`score = decay · score + weight · row` over the rows `first` … of P; yields (stop, score before row `stop`).

    score [B, Hkv, C], P [B, Hkv, G, R, C], still to be multiplied by `norm` [B, Hkv, G, R, 1] where that is given;
    `decay` is a number or broadcasts to [B, Hkv, C], and so does `weight`.
    `stops` ascend. The rows between two stops are summed at once, by one product for all stops where `decay` is a number.
    """
    dtype, device = probabilities.dtype, probabilities.device
    if not isinstance(decay, torch.Tensor) and reduction != "max":
        batch, n_kv, group, rows, columns = probabilities.shape
        share = 1.0 / group if reduction == "mean" else 1.0
        ages, fade = _ages(decay, tuple(stops), first, rows, group, share, dtype, device)
        flat = probabilities.reshape(batch * n_kv, group * rows, columns)
        ages = ages.expand(batch * n_kv, -1, -1)
        ages = ages if norm is None else ages * norm.reshape(batch * n_kv, 1, group * rows)
        # Not matmul: it would fold the batch and multiply the transposes, five times slower for so few stops.
        added = torch.bmm(ages, flat).view(batch, n_kv, -1, columns)
        added = added if weight is None else added * weight[:, :, None]
        past = fade * score[:, :, None]
        yield from zip(stops, (past + added).unbind(2), strict=True)
        return
    probabilities = probabilities if norm is None else probabilities * norm
    for start, stop in zip([first, *stops[:-1]], stops, strict=True):
        part = reduce_group(probabilities[..., start:stop, :], reduction)
        age = torch.arange(stop - start - 1, -1, -1, device=device, dtype=dtype)
        factor = torch.atleast_1d(torch.as_tensor(decay, dtype=dtype, device=device))
        added = (part * factor.unsqueeze(-2) ** age[:, None]).sum(dim=2)
        score = score * decay ** (stop - start) + (added if weight is None else added * weight)
        yield stop, score


@lru_cache(maxsize=512)
def _ages(
    decay: float,
    stops: tuple[int, ...],
    first: int,
    rows: int,
    group: int,
    share: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row counts at each stop [stops, G · R], and each stop's decay of the score before the rows [stops, 1].

    Kept, because all layers ask for the same and making it takes as long as the product with it.
    """
    with torch.inference_mode(False):
        until = torch.tensor(stops, dtype=dtype, device=device)[:, None]
        row = torch.arange(rows, dtype=dtype, device=device)
        ages = (decay ** (until - 1 - row).clamp(min=0)) * ((first <= row) & (row < until))
        return (share * ages).repeat(1, group), decay ** (until - first)
