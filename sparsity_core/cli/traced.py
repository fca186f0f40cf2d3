"""What `run` and `generate` share: options, and a trace's numbers as the answer."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsity_core.cli import options as shared
from sparsity_core.record import Trace


def trace_options(parser: argparse.ArgumentParser) -> None:
    """What is run and recorded, and where the trace goes."""
    shared.run_options(parser)
    shared.start_option(parser, "as the tokenizer does")
    shared.question_option(parser, "run reads half the text before a cut, generate the whole prompt")
    shared.setting(parser, "snapshots", 64, "most copies of the scores in the trace")
    shared.setting(parser, "against_dense", True, "a second, dense pass, for regret, the ideal mask and KL")
    trace_files(parser)


def trace_files(parser: argparse.ArgumentParser) -> None:
    """Where a trace goes."""
    parser.add_argument("--out", type=shared.path, metavar="DIR", help="write the trace there, as trace.npz")
    parser.add_argument(
        "--html", type=shared.path, metavar="FILE", help="write a page that shows the trace, all in one file"
    )


def recorded(options: argparse.Namespace) -> dict[str, Any]:
    """What `trace_options` asked for, by the names that `run` and `generate` take."""
    return shared.chosen(options, "seed", "snapshots", "against_dense", "add_bos", "question")


def trace_answer(
    options: argparse.Namespace, trace: Trace, text: str | None = None, also: Mapping[str, Any] | None = None
) -> shared.Answer:
    """The numbers of a trace, `also` others, and the text that was generated, if any was."""
    found = summary(trace) | dict(also or {})
    if text is not None:
        found["text"] = text
    if options.out is not None:
        with shared.writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
            trace.save(options.out / "trace.npz")
        found["trace"] = str(options.out / "trace.npz")
    if options.html is not None:
        with shared.writing(options.html):
            options.html.parent.mkdir(parents=True, exist_ok=True)
            trace.to_html(options.html)
        found["html"] = str(options.html)
    lines = [f"{key:16} {value}" for key, value in found.items() if key not in ("text", "notes")]
    return found, "\n".join([*lines, *trace.notes, *([] if text is None else [text])])


def summary(trace: Trace) -> dict[str, Any]:
    """The numbers of a run as plain JSON values; None where a number does not exist."""
    compared = trace.compared
    return {
        "model": trace.provenance.model,
        "pipeline": trace.provenance.pipeline,
        "dtype": trace.provenance.dtype,
        "add_bos": trace.provenance.add_bos,
        "question": trace.provenance.question or "auto",
        "device": trace.provenance.device,
        "kernels": ", ".join(trace.provenance.backends),
        "tokens": trace.n_tokens,
        "prompt_tokens": trace.n_prompt,
        "perplexity": _number(trace.perplexity),
        "dense_perplexity": _number(trace.dense_perplexity),
        "kl_to_dense": _mean(trace.kl_to_dense[~np.isnan(trace.kl_to_dense)]),
        "density": _number(trace.density()),
        "regret": _mean(trace.regret) if compared else None,
        "ideal_recall": _mean(trace.ideal_recall) if compared else None,
        "ideal_cosine": _mean(trace.ideal_cosine) if compared else None,
        "kv_bytes": trace.kv_bytes,
        "kv_bytes_dense": trace.kv_bytes_dense,
        "seconds": trace.provenance.seconds,
        "notes": list(trace.notes),
    }


def _mean(values: np.ndarray) -> float | None:
    return _number(float(values.mean())) if values.size else None


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
