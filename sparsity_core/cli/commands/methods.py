"""The methods, their knobs, sources and cards."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from sparsity_core import methods
from sparsity_core.cli import options as shared
from sparsity_core.kinds import STAGES


def options(parser: argparse.ArgumentParser) -> None:
    shared.json_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the methods' cards as a page of Markdown")


def answer(options: argparse.Namespace) -> shared.Answer:
    found: dict[str, Any] = {}
    lines: list[str] = []
    for name in methods.names():
        cls = methods.get(name)
        said = (cls.__doc__ or "").strip()
        knobs = {k.name: {"default": k.default, "help": k.metadata["help"]} for k in cls.knobs()}
        found[name] = {"stage": cls.stage, "source": cls.source, "doc": said, "knobs": knobs}
        if cls.card is not None:
            found[name]["card"] = dataclasses.asdict(cls.card)
        lines.append(f"{cls.stage}={name}  {said.splitlines()[0]}  [{cls.source}]")
        lines += [f"    {knob}={item['default']}  {item['help']}" for knob, item in knobs.items()]
    return found, page() if options.markdown else "\n".join(lines)


def page() -> str:
    """The cards of all methods, by stage, as docs/cards.md holds them."""
    lines = [
        "# Method cards",
        "",
        "What each method looks at when it decides, what deciding costs, whose settings its defaults are, and where it is known",
        "to do badly. T tokens, D channels of a head. Made by `sparselens methods --markdown`.",
    ]
    for stage in STAGES:
        lines += ["", f"## `{stage}`"]
        for name in methods.names(stage):
            cls = methods.get(name)
            lines += [
                "",
                f"### `{name}`",
                "",
                f"{(cls.__doc__ or '').strip().splitlines()[0]} Source: {cls.source}.",
                "",
            ]
            lines += [f"- **{asked}**: {said}" for asked, said in (cls.card.rows() if cls.card else {}).items()]
    return "\n".join(lines)
