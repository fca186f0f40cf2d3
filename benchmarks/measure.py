"""Timing two things fairly on a shared machine, and writing down what came out."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement: `value` in `unit`, the most that is allowed, and what it is measured against."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    baseline: str = ""
    note: str = ""

    def __str__(self) -> str:
        verdict = (
            "" if self.limit is None else f"  (limit {self.limit:g}: {'ok' if self.value <= self.limit else 'MISSED'})"
        )
        against = f" × {self.baseline}" if self.baseline else ""
        return f"{self.name:58} {self.value:8.3f} {self.unit}{against}{verdict}  {self.note}"


def ratio(
    candidate: Callable[[], Any], baseline: Callable[[], Any], *, runs: int = 5, warmup: int = 1
) -> tuple[float, float, float]:
    """(median seconds of each, candidate first; median ratio), run in turns so that a drifting machine cancels out."""
    times: list[tuple[float, float]] = []
    for i in range(warmup + runs):
        pair = (seconds(candidate), seconds(baseline))
        if i >= warmup:
            times.append(pair)
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def seconds(function: Callable[[], Any]) -> float:
    _synchronise()
    began = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - began


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes of this process's memory at its peak while `function` runs, less what it held before. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpu": cpu, "cores": str(os.cpu_count()), "accelerator": accelerator, "torch": torch.__version__}


def save(name: str, rows: list[Row]) -> None:
    """Writes the rows beside the machine's description to benchmarks/results/<name>-<machine>.json."""
    RESULTS.mkdir(exist_ok=True)
    place = machine()
    label = place["accelerator"] if place["accelerator"] != "none" else f"cpu-{place['cores']}"
    path = RESULTS / f"{name}-{label.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps({"machine": place, "rows": [vars(row) for row in rows]}, indent=1) + "\n")
