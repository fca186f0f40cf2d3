"""What was evicted as one more key and value: their means, which stand for as many keys as there are."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
import torch

from sparselens_kernels.dispatch import NEVER


class Memory(NamedTuple):
    """The sums of the keys and values that each KV head has evicted, float32 or float64, and how many they are."""

    key: torch.Tensor  # [B, Hkv, D]
    value: torch.Tensor  # [B, Hkv, Dv]
    n_evicted: torch.Tensor  # [B, Hkv], of the sums' dtype

    @classmethod
    def empty(cls, k: torch.Tensor, v: torch.Tensor) -> Memory:
        """Of a layer with keys like k [B, Hkv, …, D] and values like v [B, Hkv, …, Dv], before anything is evicted."""
        dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
        key, value = (torch.zeros(*x.shape[:2], x.shape[3], dtype=dtype, device=x.device) for x in (k, v))
        return cls(key, value, torch.zeros(k.shape[:2], dtype=dtype, device=k.device))

    def with_evicted(self, k: torch.Tensor, v: torch.Tensor, evicted: torch.Tensor) -> Memory:
        """It and those of k [B, Hkv, n, D] and v [B, Hkv, n, Dv] that are `evicted`, bool [B, Hkv, n]."""
        each = evicted.to(self.n_evicted.dtype)
        key, value = ((each[:, :, None] @ x.to(each.dtype))[:, :, 0] for x in (k, v))
        return Memory(self.key + key, self.value + value, self.n_evicted + each.sum(2))

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self)


class BlockMemory:
    """What a block's queries see of a memory: each sees what went before it, in the block too.

    A query's logit against a mean key is the mean of its logits against the keys, so that the mean keys of a block's queries
    are never made:

        x[i] = (q[i] · Σ of the keys evicted before the block + Σ of x[i, j] over those j that a row before i dropped) / c[i]

    and c[i] keys of that logit are c[i] · exp(x[i]) of the softmax's sum, x[i] + log c[i] of one.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        q: torch.Tensor,
        raw: torch.Tensor,
        scale: float,
        softcap: float | None,
        query: torch.Tensor,
        until: torch.Tensor | None,
    ) -> None:
        """Of queries q [B, H, R, D] at positions `query` [B, Hkv, R], whose logits before softcap and masks are `raw`
        [B, Hkv, G, R, C]; a key that is hidden, from the query `until` [B, Hkv, C] on, does not enter when its slot is freed."""
        self._memory, self._raw, self._softcap = memory, raw, softcap
        grouped = q.to(memory.key.dtype).unflatten(1, (memory.key.shape[1], -1))
        self._past = (grouped * (memory.key[:, :, None, None] * scale)).sum(-1)  # [B, Hkv, G, R]
        first = query[..., :1]
        self._until = torch.full_like(first, NEVER) if until is None else until - first  # as a row of the block
        self._share = torch.empty(0)

    def entered(self, dropped_in: torch.Tensor) -> torch.Tensor:
        """bool [B, Hkv, C]: the columns that the block's rows drop into the memory."""
        return (dropped_in >= 0) & (dropped_in < self._raw.shape[3]) & (self._until > dropped_in)

    def attention(self, logits: torch.Tensor, dropped_in: torch.Tensor) -> torch.Tensor:
        """P [B, Hkv, G, R, C] over the columns of logits [B, Hkv, G, R, C] beside the memory, which has the rest."""
        before = self._before(dropped_in)
        own = _logits(self._raw, self._past, before[:, :, None], self._counts(before), self._softcap)
        p = torch.softmax(torch.cat([logits, own[..., None]], dim=-1), dim=-1)
        self._share = p[..., -1]
        return p[..., :-1]

    def add_to(self, out: torch.Tensor, v: torch.Tensor, dropped_in: torch.Tensor) -> torch.Tensor:
        """out [B, H, R, Dv] of the last `attention` and its share of the mean of the values v [B, Hkv, C, Dv] evicted."""
        before = self._before(dropped_in)
        each = self._share / self._counts(before).clamp_min(1)  # of an evicted key
        mean = (each[..., None] * before[:, :, None]) @ v.to(each.dtype)[:, :, None]
        mean = mean + each[..., None] * self._memory.value[:, :, None, None]
        return out + mean.flatten(1, 2).to(out.dtype)

    def after(self, k: torch.Tensor, v: torch.Tensor, dropped_in: torch.Tensor) -> Memory:
        """The memory after the block of keys k [B, Hkv, C, D] and values v [B, Hkv, C, Dv]."""
        return self._memory.with_evicted(k, v, self.entered(dropped_in))

    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """What `walk_cpu.walk` needs: the raw logits [B, Hkv, G, R, C], the queries' products with the sum of the keys evicted
        before the block [B, Hkv, G, R], how many these are [B, Hkv], and the logits' soft cap, +inf where there is none."""
        raw, past, count = (x.contiguous().cpu().numpy() for x in (self._raw, self._past, self._memory.n_evicted))
        return raw, past, count, inf if self._softcap is None else self._softcap

    def _before(self, dropped_in: torch.Tensor) -> torch.Tensor:
        """1 and 0 [B, Hkv, R, C]: the columns that are in the memory when a row looks."""
        row = torch.arange(self._raw.shape[3], device=dropped_in.device)[:, None]
        inside = self.entered(dropped_in)[:, :, None] & (dropped_in[:, :, None] < row)
        return inside.to(self._raw.dtype)

    def _counts(self, before: torch.Tensor) -> torch.Tensor:
        """[B, Hkv, 1, R]"""
        return (self._memory.n_evicted[..., None] + before.sum(-1))[:, :, None]


def _logits(
    raw: torch.Tensor, past: torch.Tensor, inside: torch.Tensor, count: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    """The logits against the memory: −∞ where nothing is in it."""
    mean = (past + (raw * inside).sum(-1)) / (count + (count == 0))
    if softcap is not None:
        mean = torch.tanh(mean / softcap) * softcap
    return mean + torch.log(count)
