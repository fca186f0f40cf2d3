"""Bytes and FLOPs of a kernel, counted while Triton's interpreter runs it.

Two counts of bytes bracket what a card's memory moves: `memory` counts each byte once per launch and direction, as if a cache
kept everything between two uses; `issued` counts every load and store of an unmasked lane, as if no cache kept anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sparselens_kernels import (
    evict_scan,
    flash_column_score,
    gated_attention,
    label_scores,
    quantise,
    sparse_decode,
)
from triton.runtime.interpreter import interpreter_builder

from benchmarks.roofline import Shape, Work, evict_scan_work, flash_work, gated_work, label_work, sparse_decode_work


@dataclass
class Counter:
    """What the kernels run so far have loaded, stored and multiplied."""

    memory: int = 0  # bytes, each once per launch and direction
    issued: int = 0  # bytes, of every unmasked lane
    products: int = 0  # FLOPs of tl.dot, its padding included
    vector: int = 0  # FLOPs of multiplications lane by lane, each counted with the addition that follows it
    _touched: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: {"load": [], "store": []})

    def touch(self, direction: str, pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        lanes = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        addresses = np.asarray(pointers.data)[lanes].ravel()
        self.issued += size * addresses.size
        self._touched[direction].append((size, addresses))

    def end_launch(self) -> None:
        for touched in self._touched.values():
            for size in {size for size, _ in touched}:
                self.memory += size * np.unique(np.concatenate([a for s, a in touched if s == size])).size
            touched.clear()


@contextmanager
def counting() -> Iterator[Counter]:
    """Counts what interpreted kernels do inside the block. Raises RuntimeError where kernels are not interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("loads and stores are counted under Triton's interpreter alone: set TRITON_INTERPRET=1")
    builder, counter = interpreter_builder, Counter()
    load, store, dot, multiply, launch = (
        getattr(builder, name)
        for name in ("create_masked_load", "create_masked_store", "create_dot", "create_fmul", "set_grid_dim")
    )

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        counter.touch("load", pointers, mask)
        return load(pointers, mask, *rest)

    def counted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.touch("store", pointers, mask)
        return store(pointers, value, mask, *rest)

    def counted_dot(a: Any, b: Any, *rest: Any) -> Any:
        counter.products += 2 * a.data.shape[-2] * a.data.shape[-1] * b.data.shape[-1]
        return dot(a, b, *rest)

    def counted_multiply(a: Any, b: Any) -> Any:
        counter.vector += 2 * max(np.size(a.data), np.size(b.data))
        return multiply(a, b)

    def counted_launch(*grid: int) -> Any:
        counter.end_launch()
        return launch(*grid)

    counted = {
        "create_masked_load": counted_load,
        "create_masked_store": counted_store,
        "create_dot": counted_dot,
        "create_fmul": counted_multiply,
        "set_grid_dim": counted_launch,
    }
    vars(builder).update(counted)
    try:
        yield counter
    finally:
        for name in counted:
            delattr(builder, name)
        counter.end_launch()


class Case(NamedTuple):
    """A call that the interpreter can run in a second or two, and what the model says of it."""

    name: str
    run: Callable[[], Any]
    model: Work


def cases() -> Iterator[Case]:
    """Each operation in float16 at shapes of real heads, shortened to what the interpreter can run."""
    draw = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).half()

    for kind in ("fp16", "int8", "int4"):
        for reduction in ("sum", "softmax"):
            shape = Shape(batch=1, heads=8, kv_heads=2, dim=128, tokens=1500)
            labels = quantise(made(1, 2, 1500, 16), kind)
            q = made(1, 8, 16)
            yield Case(
                f"label_scores, {kind}, {reduction}",
                partial(label_scores, q, labels, reduction=reduction, scale=0.25, backend="triton"),
                label_work(shape, channels=16, kind=kind, softmax=reduction == "softmax"),
            )
    for heads, dim in ((8, 128), (2, 96)):  # of Llama-3-8B and Phi-3-mini
        shape = Shape(batch=1, heads=heads, kv_heads=2, dim=dim, tokens=1024)
        q, k, v = made(1, heads, dim), made(1, 2, 1024, dim), made(1, 2, 1024, dim)
        index = torch.rand(1, 2, 1024, generator=draw).argsort(-1)[..., :256]
        yield Case(
            f"sparse_decode, {heads // 2} query heads of {dim}",
            partial(sparse_decode, q, k, v, index, backend="triton"),
            sparse_decode_work(shape, selected=256),
        )
    shape = Shape(batch=1, heads=4, kv_heads=2, dim=128, tokens=320)
    q, k, v = made(1, 4, 320, 128), made(1, 2, 320, 128), made(1, 2, 320, 128)
    yield Case("flash_column_score", lambda: flash_column_score(q, k, v, backend="triton"), flash_work(shape))
    gates = made(1, 320, 64) / 4, made(1, 320, 64) / 4
    yield Case(
        "gated_attention",
        lambda: gated_attention(q, k, v, *gates, bias=1.0, backend="triton"),
        gated_work(shape, rank=64),
    )
    one = Shape(batch=1, heads=8, kv_heads=2, dim=128, tokens=256)
    q1, k1, v1 = made(1, 8, 1, 128), made(1, 2, 256, 128), made(1, 2, 256, 128)
    past: dict[str, Any] = {
        "positions": torch.arange(255).expand(1, 2, 255),
        "score": torch.rand(1, 2, 255, generator=draw),
        "start": 255,
    }
    yield Case(
        "evict_scan, one query",
        lambda: evict_scan(q1, k1, v1, budget=255, backend="triton", **past),
        evict_scan_work(one),
    )
