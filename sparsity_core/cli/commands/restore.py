"""Tell from an exported figure's file what it shows: link, settings and command."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from sparsity_core.cli import options as shared
from sparsity_core.record import Provenance
from sparsity_core.work import from_app


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=shared.path, help="a PDF, SVG, PNG, HTML, CSV, JSON or zip that Export wrote"
    )
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    try:
        data = options.file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {options.file} ({error.strerror or error}): name a file") from None
    made: Provenance = from_app("viz.paper").read_provenance(data)
    found = told(made)
    lines = [made.caption, *([f"link: {found['link']}"] if found["link"] else [])]
    lines += [f"{name}: {value}" for name, value in made.fields.items()]
    return found, "\n".join(lines)


def told(made: Provenance) -> dict[str, Any]:
    """A file's record as JSON values: the runs as specs, and the link that opens the view in the app; None where it has none."""
    parameters = {name: value for name, value in made.link.items() if name != "page"}
    specs = [asdict(spec) for spec in from_app("ui.address").read_address(parameters).specs] if parameters else []
    return {
        "caption": made.caption,
        "page": made.link.get("page", made.view.page if made.view else ""),
        "link": f"/{made.link.get('page', '')}?{urlencode(parameters)}" if parameters else None,
        "spec": specs[0] if specs else None,
        "specs": specs,
        "command": made.command,
        "fields": made.fields,
    }
