"""What depends on the machine's accelerator: the one file that names CUDA, which is also what PyTorch calls ROCm.

Everything else asks here and is the same on every device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_ARCHITECTURES = range(8, 13)  # major compute capabilities that Triton compiles for: Ampere to Blackwell


@dataclass(frozen=True)
class Card:
    """An accelerator as its driver describes it."""

    name: str
    capability: tuple[int, int]
    free: int  # bytes
    bfloat16: bool
    rocm: bool = False


def cards() -> list[Card]:
    """The machine's accelerators that the kernels may run on, in the driver's order; none on a CPU."""
    if not torch.cuda.is_available():
        return []
    return [
        Card(
            torch.cuda.get_device_name(i),
            torch.cuda.get_device_capability(i),
            torch.cuda.mem_get_info(i)[0],
            torch.cuda.is_bf16_supported(),
            torch.version.hip is not None,
        )
        for i in range(torch.cuda.device_count())
    ]


def is_card(device: torch.device) -> bool:
    return device.type == "cuda"


def no_triton(card: Card, installed: bool) -> str | None:
    """Why Triton cannot compile for this card, or None."""
    if not installed:
        return "Triton is not installed"
    major, minor = card.capability
    if not card.rocm and major not in _ARCHITECTURES:
        first, last = _ARCHITECTURES[0], _ARCHITECTURES[-1]
        return f"{card.name} has compute capability {major}.{minor}, and Triton is known to compile for {first}.0 to {last}.x"
    return None


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def takes_triton(device: torch.device) -> bool:
    """Whether `auto` takes Triton on this device. Warns once, with the reason, where a card cannot have it."""
    if not is_card(device):
        return False
    found = cards()
    reason = no_triton(found[device.index or 0], has_triton())
    if reason is not None:
        warnings.warn(f"{reason}: PyTorch's operations run in place of the kernels, slower and as right", stacklevel=2)
    return reason is None


def guard(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels launched inside run on the device of x, which need not be the first of several."""
    return torch.accelerator.device_index(x.device.index) if is_card(x.device) else contextlib.nullcontext()


class Side:
    """A stream for copies beside the one that computes. On a CPU there is none: events are None, and waiting does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.Stream(device) if is_card(device) else None

    @property
    def exists(self) -> bool:
        return self._stream is not None

    @contextlib.contextmanager
    def after(self, *events: Any) -> Iterator[None]:
        """What is launched inside goes to this stream, once the events have come to pass."""
        if self._stream is None:
            yield
            return
        with self._stream:
            for event in events:
                if event is not None:
                    self._stream.wait_event(event)
            yield

    def event(self) -> Any:
        """Comes to pass once the current stream has done all that it was given so far."""
        return None if self._stream is None else torch.accelerator.current_stream(self.device).record_event()

    def wait(self, event: Any) -> None:
        """Lets the current stream wait."""
        if event is not None:
            torch.accelerator.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        """Returns once all that was given to this stream is done."""
        if self._stream is not None:
            self._stream.synchronize()
