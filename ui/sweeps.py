"""A sweep over one knob of the method shown: each value a full run, kept and found again like any other."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from sparsity_core.kinds import Method, Pipeline
from sparsity_core.record import RunSpec, key_of
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown, trace_of
from viz import sweep

FACTORS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0)
_KNOB = "forgetting_factor"


def sweep_specs(spec: RunSpec) -> dict[float, RunSpec] | None:
    """The specs of a sweep over the forgetting factor, None where the method has none. The text is read, not continued,
    so that every factor is measured on the same tokens."""
    pipeline = Pipeline.parse(spec.pipeline)
    method = pipeline.eviction
    if method is None or _KNOB not in [knob.name for knob in method.knobs()]:
        return None
    return {factor: replace(spec, generate=0, pipeline=_with(pipeline, method, factor)) for factor in FACTORS}


def _with(pipeline: Pipeline, method: Method, factor: float) -> str:
    return str(replace(pipeline, eviction=replace(method, **{_KNOB: factor})))  # type: ignore[arg-type, type-var]


def forgetting_sweep(item: Shown, layer: int) -> None:
    """The sweep of the first pipeline's forgetting factor, or the button that computes it."""
    specs = sweep_specs(item.spec)
    if specs is None:
        return
    st.subheader("Forgetting factor: what each value costs", anchor=False)
    traces = {factor: trace for factor, spec in specs.items() if (trace := trace_of(spec)) is not None}
    purpose = f"sweep {key_of(specs[FACTORS[0]])}"
    if len(traces) < len(specs) and not work.pending(purpose):
        st.caption(f"{len(specs)} runs of this prompt, one for each of {', '.join(f'{f:g}' for f in FACTORS)}.")
        if st.button("Run the sweep", icon=":material/stacked_line_chart:", key="run_sweep"):
            work.submit_specs(purpose, list(specs.values()))
            st.rerun()
    work.watch(purpose, work.keep_results)
    if len(traces) < len(specs):
        return
    cost = choose_one("Cost", sweep.COSTS, "sweep_cost")
    table = sweep.sweep_table(traces)
    method = Pipeline.parse(item.spec.pipeline).eviction
    assert method is not None  # else there were no specs
    show_figure(
        sweep.plot_sweep(table, cost, knob="forgetting factor α", method=method.name, layer=layer),
        table,
        name="sweep",
        caption=f"Cost of the forgetting factor at a budget of {method.budget} keys.",
        read="At 0 only the last query counts, as in TOVA; at 1 nothing is forgotten, as in H2O without its recent window.",
        sources=[(specs[factor], traces[factor]) for factor in (FACTORS[0], FACTORS[-1])],
    )
