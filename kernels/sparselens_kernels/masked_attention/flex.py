"""PyTorch's FlexAttention under a mask: blocks that no query sees are skipped, the others are looked at key by key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sparselens_kernels.device import is_card
from sparselens_kernels.masks import KeyMask, Window

_BLOCK = 128  # the side of a block, in tokens; smaller ones are advised against


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
    blocks = block_mask(mask, q.shape[1], q.device, window, until)
    score = None if softcap is None else functools.partial(_capped, softcap)
    attend = _compiled() if is_card(q.device) else flex_attention
    out = attend(q, k, v, score_mod=score, block_mask=blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    whole = blocks.full_kv_num_blocks
    assert whole is not None  # `block_mask` gives both kinds
    return out, int((blocks.kv_num_blocks + whole).sum()) * _BLOCK**2


def block_mask(
    mask: KeyMask, n_heads: int, device: torch.device, window: int | None, until: torch.Tensor | None
) -> BlockMask:
    """The blocks that any query sees, and those that all of their queries see whole, for each query head."""
    n = mask.n_tokens
    if mask.in_blocks:
        some, whole = (x.expand(mask.lists, -1, -1) for x in mask.tiles(_BLOCK, device))
    else:
        some, whole = _row_by_row(mask, device)
    if window is not None:
        some, whole = (x & y for x, y in zip((some, whole), Window(window).tiles(_BLOCK, n, device), strict=True))
    if until is not None:
        start = torch.arange(0, n, _BLOCK, device=device)
        beyond = (0, len(start) * _BLOCK - n)
        first = torch.nn.functional.pad(until[0], beyond, value=n).unflatten(1, (-1, _BLOCK)).amin((0, 2))
        whole = whole & (first >= (start + _BLOCK).clamp_max(n)[:, None])
    heads = n_heads // mask.lists
    partial, full = (_ordered(x.repeat_interleave(heads, 0)) for x in (some & ~whole, whole))
    shows = _shows(mask, heads, n_heads, window, until)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=shows, seq_lengths=(n, n))


def _row_by_row(mask: KeyMask, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """As `mask.tiles`, for keys that may lie anywhere."""
    n, side = mask.n_tokens, -(-mask.n_tokens // _BLOCK)
    some, whole = (torch.zeros(mask.lists, side, side, dtype=torch.bool, device=device) for _ in range(2))
    every = torch.arange(n, device=device)
    for row, start in enumerate(range(0, n, _BLOCK)):
        end = min(n, start + _BLOCK)
        beyond = (0, side * _BLOCK - end)
        any_of, all_of = (
            torch.nn.functional.pad(x.expand(mask.lists, -1), beyond).unflatten(1, (side, _BLOCK))
            for x in (mask.columns(start, end, every[:end]), mask.whole(start, end, every[:end]))
        )
        some[:, row], whole[:, row] = any_of.any(2), all_of.all(2)
    return some, whole


def _shows(
    mask: KeyMask, group: int, n_heads: int, window: int | None, until: torch.Tensor | None
) -> Callable[[Any, Any, Any, Any], Any]:
    """FlexAttention's question: does this query of this head see this key?"""

    def shows(batch: Any, head: Any, query: Any, key: Any) -> Any:
        found = mask.shows(head // group, query, key)
        if window is not None:
            found = found & (key > query - window)
        if until is not None:
            found = found & (query < until[0, head // (n_heads // until.shape[1]), key])
        return found

    return shows


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int32 [1, H, rows] how many blocks of a row are set, int32 [1, H, rows, blocks] which, those first)."""
    count = blocks.sum(2, dtype=torch.int32)
    order = blocks.int().argsort(dim=2, descending=True, stable=True).int()
    return count[None], order[None]


def _capped(softcap: float, score: Any, *_: Any) -> Any:
    return softcap * torch.tanh(score / softcap)


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
