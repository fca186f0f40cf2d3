"""What a pipeline is called in figures, and the perplexity of its prompt."""

from __future__ import annotations

import numpy as np

from sparsity_core.kinds import spelled_stages
from sparsity_core.record import Trace
from viz.looks import HUES, method_colour


def label(trace: Trace) -> str:
    """A pipeline's short name in legends: its methods with their knobs, without the stage names."""
    return " + ".join(call for _, call in spelled_stages(trace.provenance.pipeline)) or "dense"


def pair_colours(a: Trace, b: Trace) -> tuple[str, str]:
    """Two colours for two pipelines side by side: A's method's own, and B's own unless that is the same."""
    first, second = method_colour(method_of(a)), method_colour(method_of(b))
    return first, next(colour for colour in (second, *HUES) if colour != first)


def pair_names(a: Trace, b: Trace) -> tuple[str, str]:
    """What two pipelines are called in one figure: their methods' names, with all knobs where those are the same."""
    first, second = method_of(a), method_of(b)
    return (first, second) if first != second else (label(a), label(b))


def method_of(trace: Trace) -> str:
    """The name of the method by which a pipeline is coloured, the one that drops tokens first; "dense" without any."""
    chosen = dict(spelled_stages(trace.provenance.pipeline))  # not parsed: a trace of others names no method of ours
    found = (chosen[stage] for stage in ("eviction", "gate", "decode", "prefill", "weights") if stage in chosen)
    return next((call.partition("(")[0] for call in found), "dense")


def prompt_perplexity(trace: Trace) -> tuple[float, float]:
    """(under the pipeline, dense) of the prompt alone, since what a pipeline wrote itself is likely to it.

    nan where the prompt has one token, and for dense where it was not compared.
    """
    of_prompt = slice(0, trace.n_prompt - 1)
    if trace.n_prompt < 2:
        return float("nan"), float("nan")
    return tuple(float(np.exp(np.mean(nll[of_prompt]))) for nll in (trace.nll, trace.dense_nll))  # type: ignore[return-value]
