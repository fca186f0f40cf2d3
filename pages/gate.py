"""Which token drops which, what does the gate think of each pair, what kinds of tokens go, and what does it cost?"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core.kinds import GateMethod
from sparsity_core.methods.gate.dcp.records import Training, command_of
from ui import gate as ui
from ui import work
from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.figure import Origin, show_figure
from ui.knobs import choose_one
from ui.literal import code, literal
from ui.page import Page
from ui.session import Shown
from ui.view import View, request
from viz import cost
from viz import gate as viz

_SECTIONS = {"see": "What it drops", "cost": "What it costs", "train": "Train one"}
_OFFERED = ("gamma", "steps", "length", "learning_rate", "seed")

PAGE = Page("Gate", ":material/filter_list:", order=3)


def page(shown: list[Shown], at: View) -> None:
    item = next((s for s in shown if ui.gate_of(s) is not None), shown[0])
    section = choose_one("Section", _SECTIONS, "gate_section")
    method = ui.gate_of(item)
    if section == "train":
        _training(item)
    elif section == "cost":
        _cost(item)
    else:
        if method is None:
            st.info("No gate runs in this pipeline: choose dcp under Gate in the sidebar, and press Run.")
        else:
            _pairs(item, at, method)
        st.subheader("What is kept, and of what kind")
        for each in shown:
            _what_is_kept(each)
        if method is not None:
            _how_it_was_trained(item, method)
    explain_methods(shown)


def _pairs(item: Shown, at: View, method: GateMethod) -> None:
    window = at.window(item.trace.n_tokens)
    st.subheader(f"What layer {at.layer} thinks of each pair")
    look = ui.look_of(item, at.layer, window)
    if look is None and not work.pending("gate_look"):
        asked = ui.was_asked(item, at.layer, window)
        if not asked or st.button(f"Look at layer {at.layer}", key="look_at_gate", icon=":material/search:"):
            ui.look_at(item, at.layer, window)
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
            read=f"Red: the query would drop the key; a cross where it is the first to. {table['drops'].mean():.0%} of the "
            "pairs are red. Dotted: the step and the chosen token. Click a pair to follow its key.",
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
            read="A token stays while every x since it was read is on the right."
            + ("" if points else " Choose a token before the step to see its own x."),
            sources=[(item.spec, item.trace)],
        )


def _what_is_kept(item: Shown) -> None:
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
            read=f"{item.letter}: beside each kind, how many of its tokens the text has.",
            sources=[(item.spec, trace)],
            on_click=lambda point: request(layer=int(point["x"])),
        )


def _how_it_was_trained(item: Shown, method: GateMethod) -> None:
    recipe = ui.recipe_used(method)
    if recipe is None:
        return
    st.subheader("How this gate was trained")
    table = viz.training_table(recipe)
    command = command_of(recipe)
    said = {name: str(recipe[name]) for name in ("model", "fingerprint", "gamma", "steps", "length", "text_blake2b")}
    show_figure(
        viz.plot_training(table, bool(recipe["distil"])),
        table,
        name="training",
        caption=f"Training of the gate of γ = {recipe['gamma']:g}: how far the gated model is off, and what it keeps.",
        read=f"{recipe['steps']} steps of {recipe['batch']} × {recipe['length']} tokens in {recipe['seconds'] / 60:.0f} minutes "
        f"on {recipe['device']}; a rises from {recipe['a_first']:g} to {recipe['a_last']:g}. Lines: means of 20 steps.",
        sources=Origin({**said, "command": command}, f"{recipe['model']}, γ = {recipe['gamma']:g}.", command),
    )


def _cost(item: Shown) -> None:
    st.subheader("The family of gates beside eviction, on this prompt")
    specs = ui.family_specs(item)
    points = ui.points_of(specs)
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
        read="To the right less is kept, upwards it costs more. Every point is a run of this prompt, each token predicted.",
        sources=[(item.spec, item.trace)],
    )


def _training(item: Shown) -> None:
    st.subheader("Train a gate for this model")
    values: dict[str, Any] = {}
    for column, name in zip(st.columns(len(_OFFERED)), _OFFERED, strict=True):
        default, help_ = getattr(Training, name), Training.__dataclass_fields__[name].metadata["help"]
        whole = isinstance(default, int)
        look: dict[str, Any] = {"step": 1} if whole else {"format": "%.4g", "step": default / 10}
        with column:
            values[name] = st.number_input(
                name.replace("_", " "), value=default, help=help_, key=f"gate_{name}", **look
            )
    own = st.toggle("Train on the prompt in the sidebar", key="gate_own_text", help="the default text where off")
    text = item.spec.prompt if own else None
    try:
        training = replace(Training(), **values)
    except ValueError as error:
        st.warning(literal(str(error)), icon=":material/warning:")
        return
    place = ui.training_place(item.spec, training, text)
    if not work.pending("train_gate") and not place.exists():
        st.caption(
            f"{training.steps} steps of {training.length} tokens; about 5 s a step of 512 tokens for the embedded model on "
            "two cores. A training that is cancelled goes on from where it was."
        )
        if st.button("Train", key="train_gate", icon=":material/model_training:"):
            ui.train(item.spec, training, text)
            st.rerun()
    work.watch("train_gate", lambda jobs: None)
    curve = st.fragment(_curve, run_every=2.0) if work.pending("train_gate") else _curve
    curve(item, training, place)
    if place.exists():
        st.success(f"Trained. Paste {code(str(place))} as the adapter under Gate in the sidebar, and press Run.")


def _curve(item: Shown, training: Training, place: Path) -> None:
    """The training as far as it has come."""
    curve = ui.curve_of(place)
    if curve["loss"]:
        table = viz.training_table({"curve": curve})
        command = command_of({"model": item.spec.model, "start": None, **asdict(training)})
        show_figure(
            viz.plot_training(table, training.distil),
            table,
            name="live_training",
            caption=f"Training of a gate of γ = {training.gamma:g}.",
            read=f"{len(table)} of {training.steps} steps.",
            sources=Origin({"model": item.spec.model, "command": command}, f"{item.spec.model}.", command),
        )


if __name__ == "__main__":
    start_from_app()
