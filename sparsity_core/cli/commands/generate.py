"""New tokens from a cache that physically loses what is evicted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sparsity_core.cli import options as shared
from sparsity_core.cli.traced import recorded, trace_answer, trace_options
from sparsity_core.record import loop_of

if TYPE_CHECKING:
    from sparsity_core.inference import Generation


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
    return trace_answer(options, out.trace, out.text, _writing(options, out))


def _writing(options: argparse.Namespace, out: Generation) -> dict[str, Any]:
    """How far the text went; None where it has no such token. Places are in the whole text, the prompt's first being 0."""
    trace, n = out.trace, out.trace.n_prompt
    loop = loop_of(out.token_ids)
    other = [] if options.temperature or not trace.compared else (trace.top1_agrees[n - 1 :] == 0).nonzero()[0]
    return {
        "new_tokens": len(out.token_ids),
        "ended": len(out.token_ids) < options.max_new_tokens,
        "first_other_token": n + int(other[0]) if len(other) else None,
        "loop_at": None if loop is None else n + loop[0],
        "loop_period": None if loop is None else loop[1],
    }
