"""Where a trace comes from."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    add_bos: str = "auto"  # whether a start token was asked for: as the tokenizer does, "yes" or "no"
    inputs: dict[str, str] = field(default_factory=dict)  # digests of files and texts that the pipeline was made of
