"""The notes' claims about adaptive structured sparse attention, beside what a run measured."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsity_core.record import Trace
from viz.cost import prompt_perplexity


def claims_table(trace: Trace | None) -> pd.DataFrame:
    """One row per claim of the notes, which name no source, and what a run measured in its place; "–" where it was not."""
    rows = [
        (
            "accuracy",
            "88.5 → 88.0",
            _perplexity(trace),
            "perplexity of this prompt, dense → this run",
        ),
        (
            "same next token",
            "–",
            _agrees(trace),
            "positions at which both models predict the same token",
        ),
        ("memory", "50 %", _memory(trace), "key-value cache at the end, of dense"),
        (
            "pairs computed",
            "–",
            _pairs(trace),
            "products of a query and a key in the prompt's attention, of dense",
        ),
        (
            "speed",
            "180 %",
            _speed(trace),
            "seconds of the dense pass ÷ this one's, what recording takes included in both",
        ),
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "what",
            "claimed, without a source",
            "measured here",
            "what was measured",
        ],
    )


def _perplexity(trace: Trace | None) -> str:
    own, dense = (np.nan, np.nan) if trace is None else prompt_perplexity(trace)
    return f"{dense:.2f} → {own:.2f}" if np.isfinite(own) and np.isfinite(dense) else "–"


def _agrees(trace: Trace | None) -> str:
    known = np.zeros(0) if trace is None else trace.top1_agrees[~np.isnan(trace.top1_agrees)]
    return f"{known.mean():.1%}" if known.size else "–"


def _memory(trace: Trace | None) -> str:
    return "–" if trace is None else f"{trace.kv_bytes / trace.kv_bytes_dense:.0%}"


def _pairs(trace: Trace | None) -> str:
    if trace is None or trace.prefill is None:
        return "–"
    n = trace.n_at_once
    return f"{trace.prefill.pairs.sum() / (trace.n_layers * trace.n_heads * n * (n + 1) / 2):.0%}"


def _speed(trace: Trace | None) -> str:
    seconds = {} if trace is None else trace.provenance.seconds
    forward, dense = seconds.get("forward", 0.0), seconds.get("dense", 0.0)
    return f"{dense / forward:.0%}" if forward and dense else "–"
