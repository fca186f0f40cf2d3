"""A prompt whose queries see blocks of keys: PyTorch's FlexAttention and the gathered reference against causal SDPA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sparselens_kernels import Blocks, KeyMask, masked_attention
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.gpu_check.finding import Finding, Measured, Place, hold, milliseconds, off, tried

_HEADS = (32, 8, 128)  # of Llama-3-8B
_BLOCK = 128
_DENSITIES = (1 / 16, 1 / 8, 1 / 4, 1.0)
_GATHERED = 8192  # tokens up to which the gathered reference is timed too


def main(place: Place) -> Iterator[Finding]:
    # On a CPU, where the check is only tried out, FlexAttention runs uncompiled.
    flex = flex_attention if place.toy else torch.compile(flex_attention, dynamic=False)
    for n in (256,) if place.toy else (8192, 32768):
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it runs uncompiled
            yield from _Prompt(place, n, flex).findings()


class _Prompt:
    def __init__(self, place: Place, n: int, flex: Callable[..., Any]) -> None:
        self.place, self.n, self.flex = place, n, flex
        n_heads, self.n_kv, dim = (4, 2, 16) if place.toy else _HEADS
        torch.manual_seed(n)
        made = partial(torch.randn, device=place.device, dtype=place.half)
        self.q = made(1, n_heads, n, dim)
        self.k, self.v = (made(1, self.n_kv, n, dim) for _ in range(2))
        self.group = n_heads // self.n_kv

    def findings(self) -> Iterator[Finding]:
        yield tried(f"FlexAttention over blocks of each KV head's own, {self.n:,} tokens", self.right)
        base = milliseconds(self.causal, self.place, runs=5)
        yield Finding(f"causal SDPA, {self.n:,} tokens", None, base, "ms")
        for density in _DENSITIES:
            about = f"{density:.3g} of the blocks, {self.n:,} tokens"
            yield tried(f"FlexAttention, {about}", partial(self.timed, density, base))
            if self.n <= _GATHERED:
                yield tried(f"gathered reference, {about}", partial(self.gathered, density, base))
        about = f"1/8 of the blocks, its mask made too, {self.n:,} tokens"
        yield tried(f"masked_attention by FlexAttention, {about}", partial(self.whole, 1 / 8, base))

    def blocks(self, density: float) -> torch.Tensor:
        """bool [Hkv, query blocks, key blocks] below the diagonal, the diagonal among them."""
        n = -(-self.n // _BLOCK)
        kept = torch.rand(self.n_kv, n, n, device=self.place.device) < density
        return (kept | torch.eye(n, dtype=torch.bool, device=self.place.device)).tril()

    def block_mask(self, kept: torch.Tensor) -> BlockMask:
        """Blocks below the diagonal are seen whole, those on it causally."""
        of_heads = kept.repeat_interleave(self.group, 0)[None]
        own = torch.eye(kept.shape[1], dtype=torch.bool, device=kept.device).expand_as(of_heads)

        def listed(found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return found.sum(-1, dtype=torch.int32), found.int().argsort(dim=-1, descending=True, stable=True).int()

        def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (query >= key) & of_heads[batch, head, query // _BLOCK, key // _BLOCK]

        # Compiled, it goes by the lists, and one function for all masks is compiled once; else by the function alone.
        within = seen if self.place.toy else _causal
        partly, whole = listed(of_heads & own), listed(of_heads & ~own)
        lengths = (self.n, self.n)
        return BlockMask.from_kv_blocks(*partly, *whole, BLOCK_SIZE=_BLOCK, mask_mod=within, seq_lengths=lengths)

    def right(self) -> str:
        kept = self.blocks(1 / 8)
        own = self.flex(self.q, self.k, self.v, block_mask=self.block_mask(kept), enable_gqa=True)
        mask = KeyMask([Blocks(kept, _BLOCK)], self.n_kv, self.n)
        rows = slice(0, min(self.n, 2048))
        if rows.stop < self.n:  # a float64 reference of the first rows says enough
            mask = KeyMask(
                [Blocks(kept[:, : rows.stop // _BLOCK, : rows.stop // _BLOCK], _BLOCK)], self.n_kv, rows.stop
            )
        q, k, v = (x[:, :, rows].double() for x in (self.q, self.k, self.v))
        exact = masked_attention(q, k, v, mask, backend="gathered").out
        return hold(off(own[:, :, rows], exact), 8e-3)

    def causal(self) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, enable_gqa=True)

    def timed(self, density: float, base: float) -> Measured:
        mask = self.block_mask(self.blocks(density))
        own = milliseconds(
            lambda: self.flex(self.q, self.k, self.v, block_mask=mask, enable_gqa=True), self.place, runs=5
        )
        return Measured(own, "ms", f"{base / own:.2f} times as fast as causal SDPA")

    def gathered(self, density: float, base: float) -> Measured:
        mask = KeyMask([Blocks(self.blocks(density), _BLOCK)], self.n_kv, self.n)
        own = milliseconds(
            lambda: masked_attention(self.q, self.k, self.v, mask, backend="gathered"), self.place, runs=3, warmup=1
        )
        return Measured(own, "ms", f"{base / own:.2f} times as fast as causal SDPA")

    def whole(self, density: float, base: float) -> Measured:
        mask = KeyMask([Blocks(self.blocks(density), _BLOCK)], self.n_kv, self.n)

        def flex() -> torch.Tensor:
            return masked_attention(self.q, self.k, self.v, mask, backend="flex").out

        error = off(flex(), masked_attention(self.q, self.k, self.v, mask, backend="gathered").out)
        hold(error, 8e-3)
        own = milliseconds(flex, self.place, runs=3, warmup=1)
        return Measured(own, "ms", f"{base / own:.2f} times as fast as causal SDPA; {hold(error, 8e-3)}")


def _causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return query >= key
