"""Where a trace or a figure comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 ._-]{0,63}")  # what every file format can hold as a key
_OF_A_RUN = (
    "model",
    "fingerprint",
    "pipeline",
    "seed",
    "dtype",
    "device",
    "backends",
    "prompt_hash",
    "versions",
    "seconds",
)


@dataclass(frozen=True)
class View:
    """What a figure shows of a trace or a model; None or empty where it shows no single one."""

    layer: int | None = None
    head: int | str | None = None  # a KV head, or "first"/"last" to drop
    token: int | None = None
    step: int | None = None
    page: str = ""  # by its address


@dataclass(frozen=True)
class Provenance:
    """Where a trace or a figure comes from; empty is what is not known or does not apply.

    A run fills the first part, a figure adds the second. A figure's file holds `caption`, `fields` and `link`.
    """

    model: str = ""
    fingerprint: str = ""
    pipeline: str = ""  # of a figure of several runs: their pipelines, joined by " | "
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    backends: tuple[str, ...] = ()
    prompt_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    add_bos: str = ""  # whether a start token was asked for: "auto" as the tokenizer does, "yes" or "no"
    question: str = ""  # "known" or "unknown" to what compressed the prompt, where that was asked for
    inputs: dict[str, str] = field(default_factory=dict)  # digests of files and texts that the pipeline was made of

    caption: str = ""
    command: str = ""  # computes what the figure shows again
    prompt: str | None = None  # the text that the command reads; of a figure's file only `link` may hold it
    view: View | None = None
    facts: dict[str, str] = field(default_factory=dict)  # whatever else the figure's file tells, by name
    link: dict[str, str] = field(
        default_factory=dict
    )  # the address that brings the figure's view back, with its "page"

    def __post_init__(self) -> None:
        for key, value in {**self.inputs, **self.facts}.items():
            if not _NAME.fullmatch(key):
                raise ValueError(f"provenance key {key!r}: a letter, then up to 63 of ASCII letters, digits, ' ._-'")
            if not isinstance(value, str):
                raise ValueError(f"provenance field {key!r} is {type(value).__name__}; give it as text")

    @property
    def fields(self) -> dict[str, str]:
        """What is known, as a file tells it: text by name."""
        seen = asdict(self.view or View())
        seed, kernels, versions = _told(self.seed), ", ".join(self.backends), _told_versions(self.versions)
        return {
            **_known(model=self.model, weights=self.fingerprint, pipeline=self.pipeline, prompt=self.prompt_hash),
            **self.facts,
            **_known(**{name: _told(value) for name, value in seen.items()}),
            **_known(**{"seed": seed, "start token": self.add_bos, "question": self.question}),
            **self.inputs,
            **_known(dtype=self.dtype, device=self.device, kernels=kernels, versions=versions, command=self.command),
        }

    @classmethod
    def of_fields(cls, caption: str, fields: Mapping[str, str]) -> Provenance:
        """The record with these `fields`; a name or a spelling that `fields` would not write is kept among the facts."""
        own: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        facts: dict[str, str] = {}
        for key, text in fields.items():
            part, name, read, told = _READ.get(key, ("", "", str, str))
            try:
                value = read(text) if part and text and isinstance(text, str) else None
            except ValueError:
                value = None
            if value is None or told(value) != text:
                facts[key] = text
            else:
                (seen if part == "view" else own)[name] = value
        return cls(caption=caption, view=View(**seen) if seen else None, facts=facts, **own)

    def to_json(self) -> str:
        """What a figure's file holds, as ASCII JSON, which every container can hold."""
        link = {"link": self.link} if self.link else {}
        return json.dumps({"caption": self.caption, "fields": self.fields, **link})

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """What `to_json` wrote; ValueError for anything else."""
        record = json.loads(text)
        if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
            raise ValueError("provenance is a JSON object with the keys 'caption' and 'fields'")
        if not isinstance(record.get("fields"), dict):
            raise ValueError("provenance 'fields' is an object of text by name")
        link = record.get("link", {})
        if not isinstance(link, dict) or not all(isinstance(value, str) for value in link.values()):
            raise ValueError("provenance 'link' is an object of text by name")
        return replace(cls.of_fields(record["caption"], record["fields"]), link=link)

    def to_plain(self) -> dict[str, Any]:
        """What a stored trace holds: what a run fills, and whatever else is filled."""
        return {name: value for name, value in asdict(self).items() if value or name in (*_OF_A_RUN, "add_bos")}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Provenance:
        """What `to_plain` gave; KeyError where something that a run fills is missing."""
        run = {name: plain[name] for name in _OF_A_RUN}
        view = View(**plain["view"]) if plain.get("view") else None
        return cls(**{"add_bos": "auto", **plain, **run, "backends": tuple(run["backends"]), "view": view})


def _known(**fields: str) -> dict[str, str]:
    return {name: text for name, text in fields.items() if text}


def _told(value: int | str | None) -> str:
    return "" if value is None else str(value)


def _told_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _versions(text: str) -> dict[str, str]:
    # a name may hold spaces, as "hub revision" does, and a version holds none
    return {name: version for name, _, version in (item.rpartition(" ") for item in text.split(", "))}


def _head(text: str) -> int | str:
    return text if text in ("first", "last") else int(text)


_Reading = tuple[str, str, Callable[[str], Any], Callable[[Any], str]]  # part, attribute, from text, to text
_READ: dict[str, _Reading] = {
    "model": ("record", "model", str, str),
    "weights": ("record", "fingerprint", str, str),
    "pipeline": ("record", "pipeline", str, str),
    "prompt": ("record", "prompt_hash", str, str),
    "seed": ("record", "seed", int, str),
    "start token": ("record", "add_bos", str, str),
    "question": ("record", "question", str, str),
    "dtype": ("record", "dtype", str, str),
    "device": ("record", "device", str, str),
    "kernels": ("record", "backends", lambda text: tuple(text.split(", ")), ", ".join),
    "versions": ("record", "versions", _versions, _told_versions),
    "command": ("record", "command", str, str),
    "layer": ("view", "layer", int, str),
    "head": ("view", "head", _head, str),
    "token": ("view", "token", int, str),
    "step": ("view", "step", int, str),
    "page": ("view", "page", str, str),
}
