"""All methods of the prefill stage at once, on the run's prompt, and the notes' claims beside what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec, key_of
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown, trace_of
from viz import patterns as viz

_SHARES = (1 / 16, 1 / 8, 1 / 4)  # of the prompt, that a pattern's width is


def family_specs(item: Shown) -> dict[tuple[str, str], RunSpec]:
    """Runs of this prompt under every method of the kind, each at three settings from sparse to dense."""
    found: dict[tuple[str, str], RunSpec] = {}
    weights = Pipeline.parse(item.spec.pipeline).weights
    for name, settings in _settings(item.trace.n_at_once).items():
        for knobs in settings:
            method = methods.get(name)(**knobs)
            setting = ", ".join(f"{knob}={value:g}" for knob, value in knobs.items())
            pipeline = str(Pipeline(weights=weights, prefill=method))  # type: ignore[arg-type]
            found[(name, setting)] = replace(item.spec, generate=0, pipeline=pipeline)
    return found


def _settings(n: int) -> dict[str, list[dict[str, Any]]]:
    """Knobs of each method, for a prompt of n tokens."""
    widths = [max(4, round(share * n)) for share in _SHARES]
    block = 16 * max(1, n // 512)
    return {
        "assa": [{"max_ratio": r, "block": 4 * block, "window": 2 * block} for r in (0.1, 0.3, 0.6)],
        "sliding_window": [{"window": 2 * w} for w in widths],
        "longformer": [{"window": w, "n_global": max(1, w // 2)} for w in widths],
        "strided": [{"stride": s} for s in (widths[1], widths[0], 8)],
        "bigbird": [{"block": block, "window_blocks": b, "random_blocks": b} for b in (1, 2, 4)],
        "lsh": [{"buckets": b, "window": w} for b, w in zip((32, 16, 8), widths, strict=True)],
        "minference": [{"vertical": w, "slash": w} for w in widths],
        "flexprefill": [{"coverage": c, "block": block} for c in (0.5, 0.7, 0.9)],
        "xattention": [{"coverage": c, "block": block} for c in (0.5, 0.7, 0.9)],
    }


def family(item: Shown) -> None:
    """Coverage, recall, precision, KL and operations against density, for all methods at once."""
    st.subheader("All methods of the kind, on this prompt", anchor=False)
    specs = family_specs(item)
    points = {name: point for name, spec in specs.items() if (point := _point_of(spec)) is not None}
    left = f"{len(specs) - len(points)} runs of this prompt, which can be cancelled and are kept one by one."
    work.offer_specs(
        "prefill_family",
        list(specs.values()),
        len(points),
        left,
        "Run them",
        "stacked_line_chart",
    )
    if not points:
        return
    table = viz.densities_table(points)
    measure = choose_one("Measure", viz.MEASURES, "patterns_measure")
    ahead = sorted(table.loc[table["looks_ahead"], "method"].unique())
    absent = ""
    if ahead and measure in ("kl", "relative"):
        absent = (
            f" {', '.join(ahead)} look ahead: later tokens decide what earlier ones see, so a loss on the text that "
            "they looked at would profit from it, and none is given."
        )
    show_figure(
        viz.plot_densities(table, measure),
        table,
        name="prefill_family",
        caption=f"{viz.MEASURES[measure]} against the share of the prompt's causal pairs that each method shows, "
        "over all layers.",
        read="Each mark is a run of this prompt. Recall and precision are held against the fewest keys of each query that "
        f"hold 95 % of its dense attention, at up to 32 queries.{absent}",
        sources=[(item.spec, item.trace)],
    )


def claims(item: Shown) -> None:
    """The notes' table beside what the run shown, or ASSA's run of the family, measured."""
    st.subheader("What the notes claim of ASSA, and what was measured", anchor=False)
    own = Pipeline.parse(item.spec.pipeline).prefill
    trace = item.trace if own is not None and own.name == "assa" else None
    if trace is None:
        known = (trace_of(spec) for (name, _), spec in family_specs(item).items() if name == "assa")
        trace = next((found for found in known if found is not None), None)
    st.dataframe(viz.claims_table(trace), hide_index=True)
    st.caption(
        f"Measured: {trace.provenance.pipeline}, on this prompt and this machine."
        if trace is not None
        else "Nothing is measured yet: run ASSA on this prompt, alone or with the others above."
    )


def _point_of(spec: RunSpec) -> dict[str, float] | None:
    try:
        return _point(key_of(spec), spec)
    except LookupError:
        return None


@st.cache_resource(show_spinner=False, max_entries=512)
def _point(key: str, _spec: RunSpec) -> dict[str, float]:
    trace = trace_of(_spec)
    if trace is None or trace.sizes is None:
        raise LookupError(key)
    return viz.point_of(trace)
