"""The runs of the curve that sets the family of gates beside eviction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.gate.dcp.records import family
from sparsity_core.record import RunSpec, key_of
from ui.gate.looks import gate_of
from ui.session import Shown, trace_of
from viz.gate import point_of

_THRESHOLDS = (0.0, 0.4, 0.8)


_SHARES = (0.75, 0.5, 0.35, 0.25)  # of the prompt, that the eviction methods of the curve keep


_EVICTING = ("local_window", "streaming_llm", "h2o", "a2sf")


def family_specs(item: Shown) -> dict[tuple[str, str], RunSpec]:
    """Runs of this prompt: every shipped γ at some thresholds, and eviction methods at some budgets."""
    own = gate_of(item)
    gates: dict[str, dict[str, Any]] = {f"gamma={gamma:g}": {"gamma": gamma} for gamma in family()}
    if own is not None and own.files():
        gates = {"own": own.files()}
    found = {
        ("dcp", f"{name}, threshold={threshold:g}"): _with(item, gate=methods.DCP(**knobs, threshold=threshold))
        for name, knobs in gates.items()
        for threshold in _THRESHOLDS
    }
    for name in _EVICTING:
        for share in _SHARES:
            budget = max(8, round(share * item.trace.n_prompt))
            method = methods.get(name)(budget=budget)  # type: ignore[call-arg]
            found[(name, f"budget={budget}")] = _with(item, eviction=method)
    return found


def _with(item: Shown, **stages: Any) -> RunSpec:
    weights = Pipeline.parse(item.spec.pipeline).weights
    return replace(item.spec, generate=0, pipeline=str(Pipeline(weights=weights, **stages)))


def points_of(specs: dict[tuple[str, str], RunSpec]) -> dict[tuple[str, str], dict[str, float]]:
    found = {}
    for name, spec in specs.items():
        try:
            found[name] = _point(key_of(spec), spec)
        except LookupError:
            continue
    return found


@st.cache_resource(show_spinner=False, max_entries=512)
def _point(key: str, _spec: RunSpec) -> dict[str, float]:
    trace = trace_of(_spec)
    if trace is None:
        raise LookupError(key)
    return point_of(trace)
