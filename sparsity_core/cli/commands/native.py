"""Record which keys a model with an indexer of its own (DeepSeek V3.2, GLM) lets each query read."""

from __future__ import annotations

import argparse

from sparsity_core.cli import options as shared
from sparsity_core.cli.traced import trace_answer, trace_files


def options(parser: argparse.ArgumentParser) -> None:
    shared.text_options(parser)
    shared.model_options(parser)
    trace_files(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    text = shared.text_of(options)
    with shared.progress_bar() as progress:
        from sparsity_core.inference import native_reads
        from sparsity_core.models import load_unchanged

        own = shared.chosen(options, "device", "dtype")
        hf, tokenizer = load_unchanged(options.model, progress=progress, **own)
        trace = native_reads(hf, tokenizer(text)["input_ids"], tokenizer)
    return trace_answer(options, trace)
