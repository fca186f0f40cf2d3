"""Models whose prompts see some keys alone: on the card, where FlexAttention is compiled for them, as on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_check.finding import Finding, Place
from benchmarks.gpu_check.models import PROMPTS, checked


def main(place: Place) -> Iterator[Finding]:
    yield from checked(place, "llama", PROMPTS)
