"""Causal attention a block of query rows at a time: what every reference is written in.

Shapes: B batch, Hkv KV heads, G query heads per KV head, R rows (queries) of a block, C columns (keys), S strips of r rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from sparselens_kernels.masks import KeyMask

# The logits of a tile and its rows at most: 4.5 MiB of float32 stay in a CPU's caches. An accelerator's tile is large, since
# launching the steps of a small one takes longer than they do.
_TILE = {"cpu": (1_179_648, 256), "other": (2**26, 1024)}


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and softmax are float32; a float64 model keeps float64."""
    return torch.promote_types(dtype, torch.float32)


def logits(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """q [B, H, R, D], k [B, Hkv, C, D] → scaled logits [B, Hkv, G, R, C] in the accumulator's dtype."""
    batch, n_heads, rows, dim = q.shape
    n_kv, columns = k.shape[1], k.shape[2]
    group = n_heads // n_kv
    dtype = accumulator_dtype(q.dtype)
    q = q.to(dtype) if scale == 1.0 else q.to(dtype) * scale
    q_flat = q.reshape(batch * n_kv, group * rows, dim)
    k_flat = k.to(dtype).reshape(batch * n_kv, columns, dim)
    return _capped(torch.bmm(q_flat, k_flat.mT), softcap).view(batch, n_kv, group, rows, columns)


def _capped(found: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return found if softcap is None else found.div_(softcap).tanh_().mul_(softcap)


def attend(probabilities: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """P [B, Hkv, G, R, C], v [B, Hkv, C, Dv] → [B, H, R, Dv] in v's dtype."""
    batch, n_kv, group, rows, columns = probabilities.shape
    flat = probabilities.reshape(batch, n_kv, group * rows, columns)
    return torch.matmul(flat, v.to(flat.dtype)).view(batch, n_kv * group, rows, -1).to(v.dtype)


@dataclass(frozen=True, eq=False)
class Tile:
    """Softmax rows of some KV heads before their division: the attention probabilities P are `weights · norm`.

    The R rows come in S strips of r, one a core, laid out [B, KV heads, S, C, G, r]: through every product each core works
    on what it has in its own cache. Where two cores share no cache, fetching from the other takes twice as long as all else.
    """

    heads: slice  # KV heads
    start: int  # queries start … end − 1
    end: int
    weights: torch.Tensor  # [B, KV heads, S, G, r, C], C the keys that the last query sees
    norm: torch.Tensor  # [B, KV heads, S, G, r, 1]

    def probabilities(self) -> torch.Tensor:
        """P [B, KV heads, G, R, C], in memory of its own."""
        batch, n_kv, strips, group, rows, columns = self.weights.shape
        out = self.weights.new_empty(batch, n_kv, group, strips * rows, columns)
        torch.mul(self.weights, self.norm, out=in_strips(out, strips))
        return out

    def attend(self, v: torch.Tensor) -> torch.Tensor:
        """v [B, Hkv, Tk, Dv] of all heads → the output's rows [B, KV heads · G, R, Dv] in v's dtype."""
        batch, n_kv, strips, group, rows, columns = self.weights.shape
        flat = self.weights.view(-1, group * rows, columns)
        own = _for_strips(v[:, self.heads, :columns].to(flat.dtype), strips)
        product = torch.bmm(flat, own).view(batch, n_kv, strips, group, rows, -1).mul_(self.norm)
        return joined(product).flatten(1, 2).to(v.dtype)


def in_strips(rows: torch.Tensor, strips: int) -> torch.Tensor:
    """[B, Hkv, G, R, C] → the view [B, Hkv, S, G, r, C]."""
    batch, n_kv, group, n, columns = rows.shape
    return rows.view(batch, n_kv, group, strips, n // strips, columns).transpose(2, 3)


def joined(strips: torch.Tensor) -> torch.Tensor:
    """[B, Hkv, S, G, r, C] → [B, Hkv, G, R, C]."""
    return strips.transpose(2, 3).flatten(3, 4)


def _for_strips(x: torch.Tensor, strips: int) -> torch.Tensor:
    """x [B, Hkv, C, D] for each strip [B · Hkv · S, C, D]; nothing is copied where there is one text and one head."""
    return x[:, :, None].expand(-1, -1, strips, -1, -1).flatten(0, 2)


def causal_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    until: torch.Tensor | None = None,
    mask: KeyMask | None = None,
) -> Iterator[Tile]:
    """Every query's softmax row, a tile at a time; a tile's weights are overwritten by the next one.

    Queries are the last Tq of the Tk keys. `window` hides the keys at a distance of `window` or more (a sliding-window
    layer), and `until` int32 [B, 1 or Hkv, Tk] a key from that query on; its own query always sees it. `mask` shows each
    query some of the keys, where all Tk tokens are queries.
    """
    batch, n_heads, n_queries, _ = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    group, past = n_heads // n_kv, n_keys - n_queries
    on_cpu = q.device.type == "cpu"
    together = 1 if on_cpu else n_kv  # a core's cache holds the tile of one head, a GPU wants them all
    cores = torch.get_num_threads() if on_cpu else 1
    least, per_row = cores * math.ceil(16 / cores), batch * together * group  # rows, logits of a row and key
    size, most = _TILE["cpu" if on_cpu else "other"]
    size = max(size, least * per_row * n_keys)
    key = torch.arange(n_keys, device=q.device)
    dtype = accumulator_dtype(q.dtype)
    # Fresh memory for each tile costs as much as its softmax, so all tiles share this.
    scratch = torch.empty(size, dtype=dtype, device=q.device)
    for first in range(0, n_kv, together):
        heads = slice(first, first + together)
        own_q = q[:, first * group : (first + together) * group].to(dtype) * scale
        own_k = k[:, heads].to(dtype).contiguous()
        start = 0
        while start < n_queries:
            seen = past + start
            room = size // per_row  # rows · (seen + rows) is at most this
            rows = (math.isqrt(seen * seen + 4 * room) - seen) // 2
            end = min(n_queries, start + max(least, min(most, rows) // least * least))
            rows, columns = end - start, past + end
            strips = math.gcd(rows, cores)
            block = own_q[:, :, start:end], own_k[:, :, :columns]
            shape = (batch, together, strips, columns, group, rows // strips)
            keys_first = scratch[: math.prod(shape)].view(shape)
            q_strips = in_strips(block[0].unflatten(1, (together, group)), strips).flatten(3, 4).flatten(0, 2)
            torch.bmm(_for_strips(block[1], strips), q_strips.mT, out=keys_first.view(-1, columns, q_strips.shape[1]))
            tile = _capped(keys_first, softcap).permute(0, 1, 2, 4, 5, 3)
            # Subtracting each row's maximum would cost as much again as its exponentials, and few rows ever need it.
            own_until = None if until is None else until[:, heads if until.shape[1] > 1 else slice(None), :columns]
            shown = None if mask is None else mask.grouped(mask.rows(past + start, columns, key), n_kv, heads)
            _hide(tile.exp_(), 0.0, window, own_until, shown)
            total = tile.sum(-1, keepdim=True)
            norm = total.reciprocal()
            lost = (total < 1e-30) | ~(total < 1e30)  # out of the exponential's range
            if lost.any():
                exact = _hide(logits(*block, 1.0, softcap)[:, :, None], float("-inf"), window, own_until, shown)
                torch.where(lost, in_strips(torch.softmax(exact[:, :, 0], dim=-1), strips), tile, out=tile)
                norm.masked_fill_(lost, 1.0)
            yield Tile(heads, start, end, tile, norm)
            start = end


def _hide(
    tile: torch.Tensor, value: float, window: int | None, until: torch.Tensor | None, shown: torch.Tensor | None
) -> torch.Tensor:
    """`tile` [B, Hkv, S, G, r, C] with `value` where a query, one of the last S · r keys, may not look; in place."""
    strips, rows, columns = tile.shape[2], tile.shape[4], tile.shape[5]
    seen = columns - strips * rows
    if value == 0.0:  # an infinity becomes nan by it, and its row is then found lost
        tile[..., seen:].mul_(_causal(strips, rows, tile.dtype, tile.device))
    else:
        tile[..., seen:].masked_fill_(_causal(strips, rows, tile.dtype, tile.device) == 0.0, value)
    if shown is not None:  # [KV heads, 1 or G, R, C]
        n_kv, lists = shown.shape[:2]
        by_strip = shown.view(1, n_kv, lists, strips, rows, columns).transpose(2, 3)
        tile.masked_fill_(~by_strip, value)
    if window is None and until is None:
        return tile
    key = torch.arange(columns, device=tile.device)
    query = key[seen:].view(strips, 1, rows, 1)
    if window is not None:
        tile.masked_fill_(key <= query - window, value)
    if until is not None:
        tile.masked_fill_(query >= until[:, :, None, None, None], value)
    return tile


@lru_cache(maxsize=32)
def _causal(strips: int, rows: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[S, 1, r, S · r]: 1 where a query sees one of these keys, else 0; laid out as a tile, for a product eight times as fast."""
    with torch.inference_mode(False):
        key = torch.arange(strips * rows, device=device)
        sees = (key[:, None] <= key.view(strips, 1, 1, rows)).to(dtype)
        return sees.transpose(-1, -2)


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
) -> torch.Tensor:
    """`score = decay · score + weight · row` over the rows `first` … of P: the score before each row `stop` [B, Hkv, stops, C].

    score [B, Hkv, C], P [B, Hkv, S, G, r, C] in strips of rows, still to be multiplied by `norm` [B, Hkv, S, G, r, 1] where
    that is given; `decay` is a number or broadcasts to [B, Hkv, C], and so does `weight`.
    `stops` ascend. The rows between two stops are summed at once, by one product for all stops where `decay` is a number.
    """
    dtype, device = probabilities.dtype, probabilities.device
    if not isinstance(decay, torch.Tensor) and reduction != "max":
        batch, n_kv, strips, group, rows, columns = probabilities.shape
        share = 1.0 / group if reduction == "mean" else 1.0
        ages, fade = _ages(decay, tuple(stops), first, strips, rows, group, share, dtype, device)
        if norm is not None:
            ages = ages * norm.reshape(batch, n_kv, strips, 1, group * rows)
        ages = ages.expand(batch, n_kv, -1, -1, -1).flatten(0, 2)
        # Not matmul: it would fold the batch and multiply the transposes, five times slower for so few stops.
        added = torch.bmm(ages, probabilities.reshape(-1, group * rows, columns))
        added = added.view(batch, n_kv, strips, -1, columns).sum(2)
        added = added if weight is None else added * weight[:, :, None]
        return fade * score[:, :, None] + added
    probabilities = joined(probabilities if norm is None else probabilities * norm)
    found = []
    for start, stop in zip([first, *stops[:-1]], stops, strict=True):
        part = reduce_group(probabilities[..., start:stop, :], reduction)
        age = torch.arange(stop - start - 1, -1, -1, device=device, dtype=dtype)
        factor = torch.atleast_1d(torch.as_tensor(decay, dtype=dtype, device=device))
        added = (part * factor.unsqueeze(-2) ** age[:, None]).sum(dim=2)
        score = score * decay ** (stop - start) + (added if weight is None else added * weight)
        found.append(score)
    return torch.stack(found, dim=2)


@lru_cache(maxsize=512)
def _ages(
    decay: float,
    stops: tuple[int, ...],
    first: int,
    strips: int,
    rows: int,
    group: int,
    share: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row counts at each stop [S, stops, G · r], and each stop's decay of the score before the rows [stops, 1].

    Kept, because all layers ask for the same and making it takes as long as the product with it.
    """
    with torch.inference_mode(False):
        until = torch.tensor(stops, dtype=dtype, device=device)[:, None]
        row = torch.arange(strips * rows, dtype=dtype, device=device)
        ages = (decay ** (until - 1 - row).clamp(min=0)) * ((first <= row) & (row < until))
        by_strip = ages.view(-1, strips, rows).transpose(0, 1)
        return (share * by_strip).repeat(1, 1, group), decay ** (until - first)
