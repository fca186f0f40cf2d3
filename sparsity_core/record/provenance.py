"""Where a trace comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """Where a trace comes from, as printed beneath figures."""

    model: str
    fingerprint: str
    pipeline: str
    seed: int
    dtype: str
    device: str
    backends: tuple[str, ...]
    prompt_hash: str
    versions: dict[str, str]
    seconds: dict[str, float]
