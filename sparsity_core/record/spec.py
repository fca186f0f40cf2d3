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
    add_bos: str = "auto"  # the start token: as the tokenizer does, "yes" or "no"

    def to_json(self) -> str:
        """The fields by name; `add_bos` only where it is chosen, since earlier results are stored under specs without it."""
        values = {name: value for name, value in asdict(self).items() if (name, value) != ("add_bos", "auto")}
        return json.dumps(values, sort_keys=True, ensure_ascii=False)
