"""One attention call: what a layer asks of its attention, handed on whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Attention of the last Tq of Tk positions, as one layer asks for it.

    B batch, H query heads, Hkv KV heads, D channels. Query i sees key j where j ≤ i + Tk − Tq, and i + Tk − Tq − j < window
    where the layer has one.
    """

    layer: int
    q: torch.Tensor  # [B, H, Tq, D]
    k: torch.Tensor  # [B, Hkv, Tk, D]
    v: torch.Tensor  # [B, Hkv, Tk, Dv]
    scale: float
    softcap: float | None = None
    window: int | None = None

    @property
    def n_queries(self) -> int:
        return self.q.shape[2]

    @property
    def n_keys(self) -> int:
        return self.k.shape[2]

    @property
    def n_kv(self) -> int:
        return self.k.shape[1]

    @property
    def how(self) -> dict[str, Any]:
        """The options of the operations in `sparselens_kernels`: scale, softcap and window."""
        return {"scale": self.scale, "softcap": self.softcap, "window": self.window}

    def with_keys(self, k: torch.Tensor, v: torch.Tensor) -> AttentionCall:
        """The same queries over other keys and values."""
        return replace(self, k=k, v=v)

    def rows(self, start: int, end: int) -> AttentionCall:
        """Queries start … end alone, over the keys that the last of them sees."""
        seen = self.n_keys - self.n_queries + end
        return replace(self, q=self.q[:, :, start:end], k=self.k[:, :, :seen], v=self.v[:, :, :seen])
