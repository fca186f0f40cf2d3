"""What a run is asked to compute."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

_LATER = ("add_bos", "question")


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
    question: str = "auto"  # "known" or "unknown" to what compresses the prompt; auto: as `run` and `generate` do

    def to_json(self) -> str:
        """The fields by name; those of `_LATER` only where they are chosen: earlier results have specs without them."""
        values = {name: value for name, value in asdict(self).items() if not (name in _LATER and value == "auto")}
        return json.dumps(values, sort_keys=True, ensure_ascii=False)
