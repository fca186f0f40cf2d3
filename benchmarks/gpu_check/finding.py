"""What a section finds, where it looks, and how it takes the time."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Place:
    """Where the check runs. `toy` keeps every size small, to try the check itself on a CPU under Triton's interpreter."""

    device: torch.device
    toy: bool

    def size(self, real: int, toy: int) -> int:
        return toy if self.toy else real

    @property
    def half(self) -> torch.dtype:
        return torch.float32 if self.toy else torch.bfloat16


class Measured(NamedTuple):
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One line of the table: a check that passed or failed, or (`passed` None) a number alone."""

    name: str
    passed: bool | None
    value: float | None = None
    unit: str = ""
    note: str = ""

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: ""}[self.passed]
        number = "" if self.value is None else f"{self.value:.4g} {self.unit}"
        return f"  {verdict:4} {self.name:64} {number:>16}  {self.note}"


def tried(name: str, check: Callable[[], str | Measured]) -> Finding:
    """What a check says that it saw, or what it measured; a failure where it raises."""
    try:
        found = check()
    except Exception as error:
        return failed(name, error)
    return Finding(name, True, note=found) if isinstance(found, str) else Finding(name, None, *found)


def failed(name: str, error: Exception) -> Finding:
    traceback.print_exception(error)
    return Finding(name, False, note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64, computed where `found` is."""
    found, expected = found.double(), expected.to(found.device).double()
    return float((found - expected).norm() / expected.norm())


def hold(error: float, limit: float) -> str:
    """The error as said in the table. Raises AssertionError where it is above the limit, or no number."""
    if not error <= limit:
        raise AssertionError(f"off by {error:.2e} of the norm, more than {limit:.0e}")
    return f"off by {error:.1e} of the norm"


def milliseconds(call: Callable[[], Any], place: Place, *, runs: int = 20, warmup: int = 3) -> float:
    """Median time of one call, by events on the card, launches included."""
    if place.device.type != "cuda":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)
    for _ in range(warmup):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for began, ended in pairs:
        began.record()
        call()
        ended.record()
    torch.cuda.synchronize()
    return statistics.median(began.elapsed_time(ended) for began, ended in pairs)


def replayed(calls: Sequence[Callable[[], Any]], place: Place, *, runs: int = 20) -> float:
    """Milliseconds of one of the calls, from replays of a CUDA graph over all: without what a launch costs the host.

    Calls over different memory, so that none finds its inputs in the caches.
    """
    if place.device.type != "cuda":
        return milliseconds(lambda: [call() for call in calls], place) / len(calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in (*calls, *calls):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return milliseconds(graph.replay, place, runs=runs) / len(calls)


def copies(held: int, place: Place) -> int:
    """How many sets of inputs of so many bytes lie well beyond the card's last cache."""
    if place.toy:
        return 1
    cache = getattr(torch.cuda.get_device_properties(place.device), "L2_cache_size", 50 * 2**20)
    return max(1, min(16, math.ceil(4 * cache / held)))
