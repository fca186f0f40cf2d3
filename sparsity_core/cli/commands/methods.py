"""The methods, their knobs and sources."""

from __future__ import annotations

import argparse
from typing import Any

from sparsity_core import methods
from sparsity_core.cli import options as shared


def options(parser: argparse.ArgumentParser) -> None:
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    found: dict[str, Any] = {}
    lines: list[str] = []
    for name in methods.names():
        cls = methods.get(name)
        said = (cls.__doc__ or "").strip()
        knobs = {k.name: {"default": k.default, "help": k.metadata["help"]} for k in cls.knobs()}
        found[name] = {"stage": cls.stage, "source": cls.source, "doc": said, "knobs": knobs}
        lines.append(f"{cls.stage}={name}  {said.splitlines()[0]}  [{cls.source}]")
        lines += [f"    {knob}={item['default']}  {item['help']}" for knob, item in knobs.items()]
    return found, "\n".join(lines)
