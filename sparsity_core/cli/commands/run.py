"""One forward over a text, every token of it a decode step."""

from __future__ import annotations

import argparse

from sparsity_core.cli import options as shared
from sparsity_core.cli.traced import trace_answer
from sparsity_core.kinds import Pipeline


def options(parser: argparse.ArgumentParser) -> None:
    shared.text_options(parser)
    shared.model_options(parser)
    shared.pipeline_option(parser)
    shared.seed_option(parser)
    parser.add_argument(
        "--n-prefill",
        type=int,
        metavar="N",
        help="tokens read densely before a method of one cut, as SnapKV, makes it; default: half the text",
    )
    shared.trace_options(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    pipeline = Pipeline.parse(options.pipeline)  # before the model is loaded: a typing error should not cost seconds
    text = shared.text_of(options)
    from sparsity_core.inference import run

    with shared.progress_bar() as progress:
        model = shared.load_model(options, progress)
        trace = run(
            model,
            text or "",
            pipeline,
            seed=options.seed,
            n_prefill=options.n_prefill,
            snapshots=options.snapshots,
            against_dense=options.against_dense,
            add_bos=options.add_bos,
            progress=progress,
        )
    return trace_answer(options, trace)
