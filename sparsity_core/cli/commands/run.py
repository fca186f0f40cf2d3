"""One forward over a text, every token of it a decode step."""

from __future__ import annotations

import argparse

from sparsity_core.cli import options as shared
from sparsity_core.cli.traced import recorded, trace_answer, trace_options


def options(parser: argparse.ArgumentParser) -> None:
    trace_options(parser)
    parser.add_argument(
        "--n-prefill",
        type=int,
        metavar="N",
        help="tokens read densely before a method of one cut, as SnapKV, makes it; default: half the text",
    )


def answer(options: argparse.Namespace) -> shared.Answer:
    with shared.asked(options) as (given, progress):
        from sparsity_core.inference import run

        trace = run(*given, n_prefill=options.n_prefill, progress=progress, **recorded(options))
    return trace_answer(options, trace)
