"""Where a figure comes from, as every file format can hold it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Provenance:
    """What a figure shows and where it comes from: caption stub, and model, revision, prompt hash, pipeline, seed, …"""

    caption: str
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.fields.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ._-]{0,63}", key):
                raise ValueError(f"provenance key {key!r}: a letter, then up to 63 of ASCII letters, digits, ' ._-'")
            if not isinstance(value, str):
                raise ValueError(f"provenance field {key!r} is {type(value).__name__}; give it as text")

    def to_json(self) -> str:
        """ASCII JSON, which every container can hold."""
        return json.dumps({"caption": self.caption, "fields": self.fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """The record that `to_json` wrote; ValueError for anything else."""
        record = json.loads(text)
        if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
            raise ValueError("provenance is a JSON object with the keys 'caption' and 'fields'")
        if not isinstance(record.get("fields"), dict):
            raise ValueError("provenance 'fields' is an object of text by name")
        return cls(record["caption"], record["fields"])
