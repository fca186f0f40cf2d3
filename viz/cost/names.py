"""What a pipeline is called in figures, and the perplexity of its prompt."""

from __future__ import annotations

import numpy as np

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Trace
from viz.looks import method_colour


def label(trace: Trace) -> str:
    """A pipeline's short name in legends: its methods with their knobs, without the stage names."""
    return " + ".join(map(str, Pipeline.parse(trace.provenance.pipeline).methods.values())) or "dense"


def pair_colours(a: Trace, b: Trace) -> tuple[str, str]:
    """The colours of two pipelines side by side: their methods' own, unless both run the same method."""
    first, second = method_colour(method_of(a)), method_colour(method_of(b))
    return (first, second) if first != second else ("#D55E00", "#0072B2")


def method_of(trace: Trace) -> str:
    """The name of the method that drops tokens, by which it is coloured; "dense" where there is none."""
    pipeline = Pipeline.parse(trace.provenance.pipeline)
    method = pipeline.eviction or pipeline.gate
    return method.name if method else "dense"


def prompt_perplexity(trace: Trace) -> tuple[float, float]:
    """(under the pipeline, dense) of the prompt alone: what a pipeline writes itself is likely to it, and another text to each.

    nan where the prompt has one token, and for dense where it was not compared.
    """
    of_prompt = slice(0, trace.n_prompt - 1)
    if trace.n_prompt < 2:
        return float("nan"), float("nan")
    return tuple(float(np.exp(np.mean(nll[of_prompt]))) for nll in (trace.nll, trace.dense_nll))  # type: ignore[return-value]
