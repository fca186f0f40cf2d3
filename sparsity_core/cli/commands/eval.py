"""Perplexity of a text in non-overlapping blocks, each read by itself."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from sparsity_core.cli import options as shared
from sparsity_core.kinds import Pipeline


def options(parser: argparse.ArgumentParser) -> None:
    shared.text_options(parser)
    shared.model_options(parser)
    shared.pipeline_option(parser)
    parser.add_argument("--block", type=int, default=2048, metavar="N", help="tokens of a block")
    parser.add_argument("--most-blocks", type=int, metavar="N", help="only the first N blocks")
    shared.start_option(parser, "no block does")
    shared.seed_option(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    pipeline = Pipeline.parse(options.pipeline)
    text = shared.text_of(options)
    from sparsity_core.evaluate import perplexity

    with shared.progress_bar() as progress:
        found = perplexity(
            shared.load_model(options, progress),
            text or "",
            pipeline,
            block=options.block,
            most_blocks=options.most_blocks,
            add_bos=options.add_bos,
            seed=options.seed,
            progress=progress,
        )
    line = f"perplexity {found.perplexity:.4f}  ({found.pipeline}; {found.convention})"
    return {"model": options.model, **asdict(found)}, line
