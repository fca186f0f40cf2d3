"""Offloaded decoding with real streams: the same tokens, and how much of the fetching hides behind the computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu_check.finding import Finding, Measured, Place, tried
from benchmarks.gpu_check.made import llama
from sparsity_core import generate
from sparsity_core.attention import Offloaded
from sparsity_core.models import Model
from sparsity_core.models.loading import wrap
from tests import tiny

_SHARE = 1 / 16
_ROUNDS = 5  # a race shows in some


def main(place: Place) -> Iterator[Finding]:
    yield tried("the same tokens from host memory, tiny llama, float32", partial(_same, place))
    model = llama(place, place.size(8, 2), 33000)
    for n in (place.size(4096, 48), place.size(16384, 96)):
        for offload in (False, True):  # calibration and compilation, before the time is taken
            _written(model, tiny.ids(n), 3, offload)
        yield from _steps(place, model, n)


def _pipeline(offload: bool, share: float = _SHARE, channels: int = 16) -> str:
    return f"decode=double_sparsity(tokens={share}, channels={channels}, dense_layers=1, offload={offload})"


def _same(place: Place) -> str:
    hf = tiny.transformer("llama", torch.float32).to(place.device)
    model, prompt = wrap(hf, tiny.tokenizer(), "tiny-llama"), tiny.ids(200)
    asked: dict[str, Any] = {"max_new_tokens": 40, "stop_at_eos": False, "against_dense": False}
    here = generate(model, prompt, _pipeline(False, 0.25, 8), **asked)
    for _ in range(_ROUNDS):
        there = generate(model, prompt, _pipeline(True, 0.25, 8), **asked)
        if there.token_ids != here.token_ids:
            raise AssertionError(f"wrote {there.token_ids}, on the device {here.token_ids}")
        np.testing.assert_allclose(there.trace.nll[:-1], here.trace.nll[:-1], atol=1e-4)
    hits = float(np.nanmean(there.trace.prefetch_hits))
    return f"{_ROUNDS} times; {hits:.1%} of the rows were predicted"


def _steps(place: Place, model: Model, n: int) -> Iterator[Finding]:
    """Milliseconds of a decode step: all on the device, fetched ahead, and fetched when needed."""
    prompt, new = tiny.ids(n), place.size(16, 4)
    about = f"{model.arch.n_layers} layers, {n:,} tokens"
    for name, offload, ahead in (
        ("all on the device", False, True),
        ("offloaded, fetched ahead", True, True),
        ("offloaded, fetched when needed", True, False),
    ):
        yield tried(f"decode step, {name}, {about}", partial(_step, model, prompt, new, offload, ahead))


def _step(model: Model, prompt: list[int], new: int, offload: bool, ahead: bool) -> Measured:
    clock = _Clock()
    with ExitStack() as stack:
        if offload:
            clock.watch(stack, ahead)
        own, trace = _written(model, prompt, 1 + new, offload)
    if not offload:
        return Measured(own, "ms", "the median step")
    moved = (trace.bytes_ahead + trace.bytes_late) / new / 2**20
    said = f"{moved:.1f} MB a step, {np.nanmean(trace.prefetch_hits):.1%} predicted"
    if ahead and clock.fetching:
        fetching, waiting = (1e3 * seconds / new for seconds in (clock.fetching, clock.waiting))
        said += f"; fetching takes {fetching:.2f} ms a step, of which layers wait {waiting:.2f} ms"
    return Measured(own, "ms", said)


def _written(model: Model, prompt: list[int], new: int, offload: bool) -> tuple[float, Any]:
    """Median milliseconds between two tokens, each of which is read on the host before it is told; and the trace."""
    told: list[float] = []

    def progress(_: float, doing: str) -> None:
        if doing.startswith("token "):
            told.append(time.perf_counter())

    out = generate(
        model,
        prompt,
        _pipeline(offload),
        max_new_tokens=new,
        stop_at_eos=False,
        against_dense=False,
        snapshots=0,
        progress=progress,
    )
    return 1e3 * float(np.median(np.diff(told))), out.trace


class _Clock:
    """How long the worker fetches, and how long a layer waits for it."""

    def __init__(self) -> None:
        self.fetching = self.waiting = 0.0

    def watch(self, stack: ExitStack, ahead: bool) -> None:
        fetch, prefetch = Offloaded._fetch, Offloaded.prefetch

        def timed_fetch(own: Offloaded, *given: Any) -> Any:
            began = time.perf_counter()
            found = fetch(own, *given)
            own._side.finish()  # in the worker, whose time it is
            self.fetching += time.perf_counter() - began
            return found

        def timed_prefetch(own: Offloaded, layer: int, *given: Any) -> None:
            if ahead:
                prefetch(own, layer, *given)
                slot = own._slots[layer % 2]
                slot.rows = _Waited(slot.rows, self)  # type: ignore[assignment]

        stack.enter_context(patch.object(Offloaded, "_fetch", timed_fetch))
        stack.enter_context(patch.object(Offloaded, "prefetch", timed_prefetch))


class _Waited:
    """A future that tells the clock how long its result was waited for."""

    def __init__(self, rows: Future[Any] | None, clock: _Clock) -> None:
        self.rows, self.clock = rows, clock

    def result(self) -> Any:
        assert self.rows is not None
        began = time.perf_counter()
        found = self.rows.result()
        self.clock.waiting += time.perf_counter() - began
        return found
