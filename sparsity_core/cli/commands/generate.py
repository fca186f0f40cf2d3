"""New tokens from a cache that physically loses what is evicted."""

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
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="at least 1")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token; above it, draws with the seed",
    )
    parser.add_argument(
        "--stop-at-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end where the model writes its end token",
    )
    shared.trace_options(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is at least 1; got {options.max_new_tokens}")
    pipeline = Pipeline.parse(options.pipeline)  # before the model is loaded: a typing error should not cost seconds
    text = shared.text_of(options)
    from sparsity_core.inference import generate

    with shared.progress_bar() as progress:
        model = shared.load_model(options, progress)
        out = generate(
            model,
            text or "",
            pipeline,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            temperature=options.temperature,
            snapshots=options.snapshots,
            against_dense=options.against_dense,
            add_bos=options.add_bos,
            stop_at_eos=options.stop_at_eos,
            progress=progress,
        )
    return trace_answer(options, out.trace, out.text)
