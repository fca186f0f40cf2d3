"""Slots of a cache whose heads hold unequal numbers of keys: each head's keys lie in order, at the end.

The cache stays a rectangle [B, Hkv, held], as wide as the head that holds most. A head with fewer keys begins with empty
slots, whose position is −1: no query sees what lies in them.
"""

from __future__ import annotations

import torch

EMPTY = -1  # the position of an empty slot


def staying(alive: torch.Tensor, held: int | None = None) -> torch.Tensor:
    """int64 [..., held]: the columns where `alive` bool [..., C] is True, in order, behind others where a row has fewer.

    A caller that knows how many a row has at most says it: an accelerator is then not waited for.
    """
    if held is None or alive.device.type == "cpu":
        count = alive.sum(-1)
        held = int(count.max())
        if int(count.min()) == held:
            return alive.nonzero()[:, -1].view(*alive.shape[:-1], held)
    return alive.byte().sort(dim=-1, stable=True).indices[..., alive.shape[-1] - held :]
