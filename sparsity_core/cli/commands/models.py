"""What can be loaded by name, and how the embedded model is found."""

from __future__ import annotations

import argparse

from sparsity_core.cli import options as shared


def options(parser: argparse.ArgumentParser) -> None:
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    from sparsity_core.models import EMBEDDED, describe_embedded

    found = {EMBEDDED: describe_embedded()}
    text = (
        f"{EMBEDDED}: {found[EMBEDDED]['status']}\n"
        "Any hub id (owner/name) or local folder with safetensors or GGUF weights works too."
    )
    return found, text
