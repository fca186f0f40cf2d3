"""Labels: a few channels of each key, in few bits."""

from __future__ import annotations

from typing import NamedTuple

import torch

LABEL_DTYPES = ("fp16", "int8", "int4")


class Labels(NamedTuple):
    """The chosen channels of every key. One scale per token and head serves the integers; fp16 has none."""

    values: torch.Tensor  # fp16 or int8 [B, Hkv, T, r]; int4: uint8 [B, Hkv, T, r / 2], two to a byte, the even one low
    scale: torch.Tensor | None  # fp16 [B, Hkv, T]
    dtype: str

    @property
    def n_channels(self) -> int:
        return self.values.shape[-1] * (2 if self.dtype == "int4" else 1)

    @property
    def nbytes(self) -> int:
        """Held by the cache, scales included."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


def quantise(keys: torch.Tensor, dtype: str) -> Labels:
    """Keys of the chosen channels [B, Hkv, T, r] as labels: value ≈ integer · scale, symmetric, the largest exact.

    Raises ValueError for an unknown dtype, and for int4 on an odd number of channels.
    """
    if dtype not in LABEL_DTYPES:
        raise ValueError(f"label_dtype is one of {', '.join(LABEL_DTYPES)}; got {dtype!r}")
    if dtype == "fp16":
        return Labels(keys.half(), None, dtype)
    if dtype == "int4" and keys.shape[-1] % 2:
        raise ValueError(f"int4 labels are stored in pairs: choose an even number of channels, not {keys.shape[-1]}")
    most = 127 if dtype == "int8" else 7
    tiny = torch.finfo(torch.float16).tiny
    scale = (keys.float().abs().amax(-1) / most).clamp(min=tiny).half()
    integers = (keys.float() / scale.float()[..., None]).round().clamp(-most, most).to(torch.int8)
    if dtype == "int8":
        return Labels(integers, scale, dtype)
    low, high = integers[..., 0::2] & 0xF, integers[..., 1::2] & 0xF
    return Labels((low | (high << 4)).view(torch.uint8), scale, dtype)


def dequantise(labels: Labels) -> torch.Tensor:
    """float32 [B, Hkv, T, r]."""
    values = labels.values
    if labels.dtype == "int4":
        pairs = values.view(torch.int8)
        # An arithmetic shift restores the sign: left moves the low half up, right brings it down again.
        values = torch.stack(((pairs << 4) >> 4, pairs >> 4), dim=-1).flatten(-2)
    found = values.float()
    return found if labels.scale is None else found * labels.scale.float()[..., None]
