"""What a run is asked to compute."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides what a run computes; its JSON is the key under which the result is stored."""

    model: str
    prompt: str
    pipeline: str = "dense"
    generate: int = 0
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
