"""A sweep over one knob of the method shown: each value a full run, kept and found again like any other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from sparsity_core.kinds import EvictionMethod, Pipeline, Sweep
from sparsity_core.record import RunSpec, key_of
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown, trace_of
from viz import sweep


@dataclass(frozen=True)
class Swept:
    """The knob of a pipeline's eviction method that declares a sweep, and a run for each of its values."""

    method: EvictionMethod
    knob: str
    sweep: Sweep
    specs: dict[float, RunSpec]

    @property
    def title(self) -> str:
        return self.knob.replace("_", " ")


def swept(spec: RunSpec) -> Swept | None:
    """None where the eviction method declares no sweep. The text is read, not continued, so that every value is measured
    on the same tokens."""
    pipeline = Pipeline.parse(spec.pipeline)
    method = pipeline.eviction
    declared = [] if method is None else [knob for knob in method.knobs() if knob.metadata["sweep"]]
    if method is None or not declared:
        return None
    name, asked = declared[0].name, declared[0].metadata["sweep"]
    pipelines = {value: replace(pipeline, eviction=replace(method, **{name: value})) for value in asked.values}
    specs = {value: replace(spec, generate=0, pipeline=str(own)) for value, own in pipelines.items()}
    return Swept(method, name, asked, specs)


def knob_sweep(item: Shown, layer: int) -> None:
    """The sweep of the first pipeline's method, or the button that computes it."""
    found = swept(item.spec)
    if found is None:
        return
    specs, values = found.specs, found.sweep.values
    st.subheader(f"{found.title.capitalize()}: what each value costs", anchor=False)
    traces = {value: trace for value, spec in specs.items() if (trace := trace_of(spec)) is not None}
    purpose = f"sweep {key_of(specs[values[0]])}"
    if len(traces) < len(specs) and not work.pending(purpose):
        st.caption(f"{len(specs)} runs of this prompt, one for each of {', '.join(f'{value:g}' for value in values)}.")
        if st.button("Run the sweep", icon=":material/stacked_line_chart:", key="run_sweep"):
            work.submit_specs(purpose, list(specs.values()))
            st.rerun()
    work.watch(purpose, work.keep_results)
    if len(traces) < len(specs):
        return
    cost = choose_one("Cost", sweep.COSTS, "sweep_cost")
    table = sweep.sweep_table(traces)
    show_figure(
        sweep.plot_sweep(
            table, cost, knob=f"{found.title} {found.sweep.symbol}", method=found.method.name, layer=layer
        ),
        table,
        name="sweep",
        caption=f"Cost of the {found.title} at a budget of {found.method.budget} keys.",
        read=found.sweep.read,
        sources=[(specs[value], traces[value]) for value in (values[0], values[-1])],
    )
