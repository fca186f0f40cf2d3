"""The sections of the Tokens page, from top to bottom."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from ui import view
from ui.figure import offer_figure, show_figure
from ui.first_look import first_look
from ui.knobs import choose_one
from ui.session import Shown, looks_of
from ui.strip import token_strip
from ui.tokens.told import strip_cells, tell_mass, tell_shapes, tell_token
from ui.view import View
from viz import atlas, channels, cost, fates, gate, strip


def atlas_of(item: Shown, shown: list[Shown], at: View) -> None:
    """One run's atlas; the colours of all that are shown span the same steps."""
    trace, window = item.trace, at.window(item.trace.n_tokens)
    latest, named = max(s.trace.n_tokens for s in shown) - 1, len(shown) > 1
    table = atlas.atlas_table(trace, at.head, at.step, window)
    if window != (0, trace.n_tokens):
        pooled = atlas.pooled_table(atlas.atlas_table(trace, at.head, at.step))
        show_figure(
            atlas.plot_overview(pooled, window),
            pooled,
            name=f"overview_{item.letter}",
            caption=f"Share of tokens dropped, by layer, up to step {at.step}, {at.heads}.",
            read="This is the whole text; the frame is the window drawn below. Choose a token to move it.",
            sources=[(item.spec, trace)],
        )
    name, stages = f"atlas_{item.letter}", fates.removing(trace)
    cells, height = partial(atlas.cells_png, table, latest, stages), atlas.atlas_height(trace.n_layers, stages)
    with first_look(name, cells, height, atlas.atlas_margin(stages)):
        show_figure(
            atlas.plot_atlas(
                table,
                n_prompt=trace.n_prompt,
                step=at.step,
                selected=(at.layer, at.token),
                latest=latest,
                stages=stages,
            ),
            table,
            name=name,
            caption=f"Step at which each layer dropped each token, up to step {at.step}, {at.heads} ({cost.label(trace)}).",
            read=("" if not named else f"**{item.letter}:** ")
            + "A filled cell is a dropped token, its colour the step that dropped it. An empty cell is still in the cache. "
            + tell_shapes(trace)
            + "Click a cell to follow its token.",
            sources=[(item.spec, trace)],
            on_click=lambda point: view.request(layer=int(point["y"]), token=int(point["x"])),
        )


def reads(item: Shown, at: View) -> None:
    """How often each token was read, where a decode stage chose what to read."""
    trace = item.trace
    if not trace.selected.size:
        return
    st.subheader(f"{item.letter}: how often each token was read", anchor=False)
    table = channels.selected_table(trace, at.head, at.window(trace.n_tokens))
    show_figure(
        channels.plot_selected(table, selected=(at.layer, at.token)),
        table,
        name=f"selected_{item.letter}",
        caption="Of the queries that could choose each token, the share that read it: those of the decode stage while the "
        f"token was cached, {at.all_heads} ({cost.label(trace)}).",
        read=f"A token that is not read stays in the cache and may be read later, unless it is evicted. {tell_mass(trace)}",
        sources=[(item.spec, trace)],
        on_click=lambda point: view.request(layer=int(point["y"]), token=int(point["x"])),
    )


def links(item: Shown, at: View) -> None:
    """Which token dropped which, where a gate did."""
    if not item.trace.gated_at.size:
        return
    window = at.window(item.trace.n_tokens)
    table = gate.link_table(item.trace, at.layer, window)
    st.subheader(f"{item.letter}: which token dropped which, layer {at.layer}", anchor=False)
    show_figure(
        gate.plot_links(table, window, selected=at.token),
        table,
        name=f"links_{item.letter}",
        caption=f"Tokens that a later token dropped in layer {at.layer}, for all heads ({cost.label(item.trace)}).",
        read=f"An arc leads from each dropped token (cross) to the one that dropped it (triangle). In this window "
        f"{table['dropped_by'].nunique()} tokens drop {len(table)} others. Click one to follow it.",
        sources=[(item.spec, item.trace)],
        on_click=lambda point: view.request(token=int(point["x"])),
    )


def difference(shown: list[Shown], at: View) -> None:
    """Where A and another run disagree, on the beginning that their texts share."""
    a, *others = shown
    others = [other for other in others if atlas.common_length(a.trace, other.trace)]
    if not others:
        return
    b = others[0]
    if len(others) > 1:
        chosen = choose_one("A against", {other.letter: other.letter for other in others}, "difference_against")
        b = next(other for other in others if other.letter == chosen)
    table = atlas.difference_table(a.trace, b.trace, at.head, at.step)
    common = int(table["position"].max()) + 1
    apart = f"From token {common} on the texts differ. " if common < min(a.trace.n_tokens, b.trace.n_tokens) else ""
    start, end = at.window(common)
    inside = table[table["position"].between(start, end - 1)]
    show_figure(
        atlas.plot_difference(inside, cost.pair_colours(a.trace, b.trace), cost.pair_names(a.trace, b.trace)),
        table,
        name="difference",
        caption=f"Contested tokens at step {at.step}, {at.heads}: dropped by one pipeline and kept by the other. "
        f"{a.title}. {b.title}.",
        read=f"{apart}Mean Jaccard index of the dropped sets over the layers, 1 where they are "
        f"the same: {atlas.agreement(table).mean():.2f}.",
        sources=[(s.spec, s.trace) for s in (a, b)],
    )


def strip_of(item: Shown, shown: list[Shown], at: View) -> None:
    """One run's tokens, with those that another run decides on differently marked."""
    trace, others = item.trace, [other.trace for other in shown if other is not item]
    window = at.window(trace.n_tokens)
    table = strip.strip_table(trace, at.layer, at.head, min(at.step, trace.n_tokens - 1), window)
    drawn = strip.contested_with(table, others, at.layer, at.head, at.step) if others else table
    clicked = token_strip(
        strip_cells(drawn, at), selected=at.token, key=f"strip_{item.letter}", label=item.title.replace(":", " ·", 1)
    )
    offer_figure(
        partial(strip.paper_strip, drawn),
        drawn,
        name=f"strip_figure_{item.letter}",
        caption=f"Tokens kept and dropped in layer {at.layer}, {at.heads}, at step {at.step} ({cost.label(trace)}).",
        read="A token struck through is dropped, by a gate if struck twice; a hatched one is hidden by the prefill stage, one "
        "between bars not read by the decode stage. A double border protects a sink, an underline a recent token. Click a token "
        "to follow it.",
        sources=[(item.spec, trace)],
    )
    st.markdown(tell_token(trace, at))
    if clicked is not None and clicked != at.token:
        view.go(token=clicked)


def loss(shown: list[Shown], at: View) -> None:
    """How much worse than the dense model's each token's prediction is, for every run that was compared with it."""
    compared = {s.title: s for s in shown if s.trace.compared}
    if compared:
        tables = {name: cost.loss_table(s.trace) for name, s in compared.items()}
        show_figure(
            cost.plot_loss(tables, looks_of(shown), at.step),
            pd.concat(tables, names=["pipeline"]).reset_index("pipeline"),
            name="loss",
            caption="KL divergence of the next-token distribution from the dense model's, at each token.",
            read="A peak is a place where the pipeline's prediction differs from the dense model's. Click one to go to the query "
            "that makes it, with what was evicted by then.",
            sources=[(s.spec, s.trace) for s in compared.values()],
            on_click=lambda point: view.request(step=max(0, int(point["x"]) - 1)),  # the query before predicts it
        )
    else:
        st.caption("Only the dense model is shown, and it forgets nothing.")
