"""New tokens from a cache that physically loses what is evicted."""

from __future__ import annotations

import argparse

from sparsity_core.cli import options as shared
from sparsity_core.cli.traced import recorded, trace_answer, trace_options


def options(parser: argparse.ArgumentParser) -> None:
    trace_options(parser)
    shared.setting(parser, "max_new_tokens", 32, "at least 1")
    shared.setting(parser, "temperature", 0.0, "0 takes the likeliest token; above it, draws with the seed")
    shared.setting(parser, "stop_at_eos", True, "end where the model writes its end token")
    parser.add_argument(
        "--n-prefill",
        type=int,
        metavar="N",
        help="tokens of the prompt read at once; a method of one cut knows no others",
    )


def answer(options: argparse.Namespace) -> shared.Answer:
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is at least 1; got {options.max_new_tokens}")
    settings = recorded(options) | shared.chosen(options, "max_new_tokens", "temperature", "n_prefill", "stop_at_eos")
    with shared.asked(options) as (given, progress):
        from sparsity_core.inference import generate

        out = generate(*given, progress=progress, **settings)
    return trace_answer(options, out.trace, out.text)
