"""Perplexity of a text in non-overlapping blocks, each read by itself."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from sparsity_core.cli import options as shared


def options(parser: argparse.ArgumentParser) -> None:
    shared.run_options(parser)
    shared.setting(parser, "block", 2048, "tokens of a block")
    parser.add_argument("--most-blocks", type=int, metavar="N", help="only the first N blocks")
    shared.start_option(parser, "no block does")


def answer(options: argparse.Namespace) -> shared.Answer:
    own = shared.chosen(options, "block", "most_blocks", "add_bos", "seed")
    with shared.asked(options) as (given, progress):
        from sparsity_core.evaluate import perplexity

        found = perplexity(*given, progress=progress, **own)
    line = f"perplexity {found.perplexity:.4f}  ({found.pipeline}; {found.convention})"
    return {"model": options.model, **asdict(found)}, line
