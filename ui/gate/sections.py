"""The sections of the Gate page that look at runs."""

from __future__ import annotations

import streamlit as st

from sparsity_core.kinds import GateMethod
from sparsity_core.methods.gate.dcp.records import command_of
from sparsity_core.record import Provenance
from ui import work
from ui.figure import show_figure
from ui.gate.family import family_specs, points_of
from ui.gate.looks import look_at, look_of, recipe_used, was_asked
from ui.session import Shown
from ui.view import View, request
from viz import cost
from viz import gate as viz


def pairs(item: Shown, at: View) -> None:
    window = at.window(item.trace.n_tokens)
    st.subheader(f"What layer {at.layer} thinks of each pair", anchor=False)
    look = look_of(item, at.layer, window)
    if look is None and not work.pending("gate_look"):
        asked = was_asked(item, at.layer, window)
        if not asked or st.button(f"Look at layer {at.layer}", key="look_at_gate", icon=":material/search:"):
            look_at(item, at.layer, window)
            st.rerun()
    work.watch("gate_look", lambda jobs: None)
    if look is None:
        return
    matrix, curve = st.columns([3, 2])
    with matrix:
        table = viz.interaction_table(look, item.trace.tokens)
        show_figure(
            viz.plot_interactions(look, item.trace.tokens, at.step, at.token),
            table,
            name="interactions",
            caption=f"Gate logits of layer {at.layer}, the same for all its heads ({cost.label(item.trace)}).",
            read=f"A red pair: its query would drop its key. A cross: it is the first query to do so. "
            f"{table['drops'].mean():.0%} of the pairs are red. Dotted lines: the step and the chosen token. Click "
            "a pair to follow its key.",
            sources=[(item.spec, item.trace)],
            on_click=lambda point: request(token=int(point["x"]), step=int(point["y"])),
        )
    with curve:
        key, query = at.token - look.start, at.step - look.start
        points = {}
        if 0 <= key < query < look.x.shape[0]:
            points[f"token {at.token} at step {at.step}"] = float(look.x[query, key])
            points[f"its lowest, steps {at.token + 1} to {at.step}"] = float(look.x[key + 1 : query + 1, key].min())
        table = viz.sigmoid_table()
        show_figure(
            viz.plot_sigmoid(table, points, 0.0),
            table,
            name="sparse_sigmoid",
            caption="The sparse sigmoid: soft while the gate is trained, a step when it is used.",
            read="A token stays as long as its logit x has been above 0 at every later query."
            + ("" if points else " Choose a token before the step to see its own x."),
            sources=[(item.spec, item.trace)],
        )


def what_is_kept(item: Shown) -> None:
    trace = item.trace
    kept, kinds = st.columns(2)
    with kept:
        table = viz.kept_table(trace)
        show_figure(
            viz.plot_kept(table),
            table,
            name=f"kept_context_{item.letter}",
            caption=f"Share of the earlier tokens that each query still sees, by layer ({cost.label(trace)}).",
            read=f"{item.letter}: {trace.density():.0%} of all causal pairs stay, over all layers.",
            sources=[(item.spec, trace)],
            on_click=lambda point: request(layer=int(point["y"]), step=int(point["x"])),
        )
    with kinds:
        table = viz.kinds_table(trace)
        show_figure(
            viz.plot_kinds(table),
            table,
            name=f"kinds_{item.letter}",
            caption=f"Share of each kind of token that is dropped by the end, by layer ({cost.label(trace)}).",
            read=f"{item.letter}. The number beside a kind says how many of its tokens the text has.",
            sources=[(item.spec, trace)],
            on_click=lambda point: request(layer=int(point["x"])),
        )


def trained(method: GateMethod) -> None:
    recipe = recipe_used(method)
    if recipe is None:
        return
    st.subheader("How this gate was trained", anchor=False)
    table = viz.training_table(recipe)
    command = command_of(recipe)
    said = {name: str(recipe[name]) for name in ("fingerprint", "gamma", "steps", "length", "text_blake2b")}
    show_figure(
        viz.plot_training(table, bool(recipe["distil"])),
        table,
        name="training",
        caption=f"Training of the gate with γ = {recipe['gamma']:g}: the gated model's loss, and the share of "
        "tokens that it keeps.",
        read=f"{recipe['steps']} steps of {recipe['batch']} × {recipe['length']} tokens in {recipe['seconds'] / 60:.0f} minutes "
        f"on {recipe['device']}; a rises from {recipe['a_first']:g} to {recipe['a_last']:g}. Lines are means over 20 steps.",
        sources=Provenance(model=str(recipe["model"]), command=command, facts=said),
    )


def cost_section(item: Shown) -> None:
    st.subheader("The family of gates beside eviction, on this prompt", anchor=False)
    specs = family_specs(item)
    points = points_of(specs)
    left = f"{len(specs) - len(points)} runs of this prompt, which can be cancelled and are kept one by one."
    work.offer_specs("family", list(specs.values()), len(points), left, "Run them", "stacked_line_chart")
    if not points:
        return
    table = viz.family_table(points)
    show_figure(
        viz.plot_family(table),
        table,
        name="gate_family",
        caption="Perplexity against the share of the causal context that is kept: trained gates and eviction methods.",
        read="Each point is a run of this prompt. Further right less is kept; further up the perplexity is higher.",
        sources=[(item.spec, item.trace)],
    )
