"""Gathered attention: for each block of queries, the keys that any of them sees, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from sparselens_kernels.masks import KeyMask
from sparselens_kernels.rows import accumulator_dtype

_BLOCKS = 32  # of a text: more gather more often, fewer compute more that is hidden
_LEAST, _MOST = 64, 128  # queries of a block; the logits of more leave a CPU's caches
_DEVICE_LOGITS = 2**26  # of a block on an accelerator, where launching a small block's steps takes longer than they do


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: KeyMask,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    until: torch.Tensor | None,
) -> tuple[torch.Tensor, int]:
    n_heads, n = q.shape[1:3]
    dtype, device, lists = accumulator_dtype(q.dtype), q.device, mask.lists
    own_k, own_v = (x[0].to(dtype).repeat_interleave(lists // k.shape[1], 0).flatten(0, 1) for x in (k, v))
    own_q = q[0].to(dtype).unflatten(0, (lists, -1)) * scale  # [lists, G, T, D]: G query heads share a list of keys
    first, every = torch.arange(lists, device=device)[:, None] * n, torch.arange(n, device=device)
    gone = None if until is None else until[0].expand(k.shape[1], -1).repeat_interleave(lists // k.shape[1], 0)
    out = q.new_empty(1, n_heads, n, v.shape[3])
    size = min(_MOST, n // _BLOCKS) if device.type == "cpu" else min(256, _DEVICE_LOGITS // (n_heads * n))
    size = max(_LEAST, size // _LEAST * _LEAST)  # as patterns' own blocks are

    def attend(start: int) -> int:
        """Fills in a block's rows of `out`; returns how many products that took."""
        end = min(n, start + size)
        key, query = every[:end], every[start:end]
        some, whole = (x.expand(lists, -1) for x in (mask.columns(start, end, key), mask.whole(start, end, key)))
        if window is not None:
            some, whole = some & (key > start - window), whole & (key > end - 1 - window)
        if gone is not None:
            whole = whole & (gone[:, :end] >= end)
        gathered, count, n_whole = _gathered(whole, some & ~whole)
        rows = (gathered + first).flatten()
        block_k, block_v = (x.index_select(0, rows).view(lists, gathered.shape[1], -1) for x in (own_k, own_v))
        logits = own_q[:, :, start:end].flatten(1, 2) @ block_k.mT  # [lists, G · R, C]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        rest = gathered[:, n_whole:]  # the others are seen by every query of the block
        seen = mask.rows(start, end, every, rest) & (every[n_whole : gathered.shape[1]] < count)[:, None]
        if window is not None:
            seen &= rest[:, None] > query[:, None] - window
        if gone is not None:
            seen &= query[:, None] < gone.gather(1, rest)[:, None]
        logits.unflatten(1, (-1, end - start))[..., n_whole:].masked_fill_(~seen[:, None], float("-inf"))
        block = (torch.softmax(logits, dim=-1) @ block_v).unflatten(1, (-1, end - start)).flatten(0, 1)
        out[0, :, start:end] = block.to(q.dtype)
        return n_heads * (end - start) * gathered.shape[1]

    return out, sum(_on_each_core(attend, range(0, n, size), device))


def _on_each_core(attend: Callable[[int], int], starts: range, device: torch.device) -> list[int]:
    """`attend` of every block, on a CPU each core one block at a time: the operations of one are too small to share."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(starts) < 2 * threads:
        return [attend(start) for start in starts]
    inference = torch.is_inference_mode_enabled()

    def alone(start: int) -> int:
        with torch.inference_mode(inference):  # each thread has a mode of its own
            return attend(start)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(alone, reversed(starts)))  # the longest first
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # its BLAS counts for the whole process


def _gathered(whole: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The keys of each list, those of `whole` bool [lists, K] before those of `rest`, filled up with key 0.

    Returns (int64 [lists, C], int64 [lists, 1] how many are no filling, how many of every list are of `whole`).
    """
    counts = [x.sum(1, keepdim=True) for x in (whole, rest)]
    total = counts[0] + counts[1]
    found = torch.zeros(len(whole), int(total.max()), dtype=torch.int64, device=whole.device)
    for x, count, before in zip((whole, rest), counts, (torch.zeros_like(total), counts[0]), strict=True):
        of, key = x.nonzero(as_tuple=True)
        place = torch.arange(len(of), device=of.device) - (count.cumsum(0) - count - before)[of, 0]
        found[of, place] = key
    return found, total, int(counts[0].min())
