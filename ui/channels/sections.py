"""The sections of the Channels page, from top to bottom."""

from __future__ import annotations

import streamlit as st

from sparsity_core.kinds import Pipeline, SelectionMethod
from sparsity_core.methods.decode.double_sparsity.channels import Channels
from sparsity_core.studies import Read
from ui import work
from ui.channels.choice import Choice, origin, other_calibrations, tell_fetched, tell_thinned
from ui.channels.jobs import (
    ANSWER,
    answer_specs,
    calibrate_model,
    calibration_of,
    curve_specs,
    look_at_layer,
    overlaps,
    points_of,
    read_of,
    study_of,
    study_text,
    traces_of,
)
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown
from ui.view import View, request
from viz import channels as viz


def offer_calibration(item: Shown) -> Channels | None:
    """The model's calibration, or the button that makes it."""
    calibrated = calibration_of(item)
    if calibrated is None:
        st.info("This model's channels have not been calibrated here yet.")
        if not work.pending("calibrate") and st.button("Calibrate", key="calibrate", icon=":material/tune:"):
            calibrate_model(item)
            st.rerun()
    work.watch("calibrate", lambda jobs: None)
    return calibrated


def tell_calibrations(shown: list[Shown], calibrated: Channels) -> None:
    for sentence in other_calibrations(shown, calibrated):
        st.info(sentence)


def magnitudes(item: Shown, at: View, choice: Choice, calibrated: Channels) -> None:
    st.subheader("Outlier channels", anchor=False)
    head = at.head if isinstance(at.head, int) else None
    recipe = calibrated.recipe
    whole, own = st.columns([3, 2])
    with whole:
        table = viz.magnitude_table(calibrated, choice.statistic, head=head)
        show_figure(
            viz.plot_magnitudes(table, choice.channels, choice.statistic, selected=at.layer),
            table,
            name="magnitudes",
            caption=f"{viz.STATISTIC_NAMES[choice.statistic]} of each channel, by layer.",
            read=f"A circle marks one of the {choice.channels} largest channels of its layer. "
            f"{'Mean of the KV heads' if head is None else f'KV head {head}'}, after the rotary embedding, over "
            f"{recipe.get('blocks')} × {recipe.get('length')} tokens of calibration text. Click a layer to follow it.",
            sources=origin(item, choice, calibrated),
            on_click=lambda point: request(layer=int(point["y"])),
        )
    with own:
        table = viz.magnitude_table(calibrated, choice.statistic, layer=at.layer)
        show_figure(
            viz.plot_magnitudes(table, choice.channels, choice.statistic),
            table,
            name="magnitudes_layer",
            caption=f"{viz.STATISTIC_NAMES[choice.statistic]} of each channel of layer {at.layer}, by KV head.",
            read=f"Layer {at.layer}: each KV head keeps its own {choice.channels}.",
            sources=origin(item, choice, calibrated),
        )


def statistics(item: Shown, choice: Choice, calibrated: Channels) -> None:
    st.subheader("Do the statistics agree?", anchor=False)
    table = overlaps(item.trace.provenance.fingerprint, calibrated, choice.channels)
    dim = calibrated.magnitudes["qk"].shape[2]
    stable = calibrated.recipe.get("stability")
    drawn, told = st.columns([3, 2], vertical_alignment="center")
    with drawn:
        show_figure(
            viz.plot_overlap(table, choice.channels / dim),
            table,
            name="overlap",
            caption=f"Share of the top {choice.channels} channels that two statistics both choose.",
            read="1 means that both statistics choose the same channels. Means over layers and KV heads.",
            sources=origin(item, choice, calibrated),
        )
    with told:
        if isinstance(stable, dict):
            st.markdown(
                "How many of these channels a calibration on other stretches of text chooses again:\n\n"
                "| statistic | shared top channels |\n|:---|---:|\n"
                + "\n".join(f"| {name} | {value:.1%} |" for name, value in stable["shared"].items())
            )
            st.caption(f"{stable['seeds']} seeds, r = {stable['channels']}, measured when this calibration was made.")


def quality(item: Shown, choice: Choice, calibrated: Channels) -> None:
    st.subheader("How many channels, how many keys?", anchor=False)
    study = study_of(item)
    if study is None and not work.pending("channels"):
        st.caption(
            "Compares what every statistic, number of channels and share would read of this text with its exact attention."
        )
        if st.button("Measure on this text", key="study_channels", icon=":material/straighten:"):
            study_text(item)
            st.rerun()
    work.watch("channels", lambda jobs: None)
    if study is None:
        return
    what = choose_one("Measure", viz.QUALITIES, "channels_quality")
    table = viz.quality_table(study)
    curves, surface = st.columns(2)
    with curves:
        show_figure(
            viz.plot_quality(table, what, choice.channels),
            table,
            name="quality",
            caption=f"{viz.QUALITIES[what]} with {choice.channels} channels, by the statistic that chose them.",
            read=f"Means over layers, KV heads and {len(study.queries)} queries of this text.",
            sources=origin(item, choice, calibrated),
        )
    with surface:
        show_figure(
            viz.plot_surface(table, what, choice.statistic),
            table,
            name="quality_surface",
            caption=f"{viz.QUALITIES[what]} against channels and share, statistic {choice.statistic}.",
            read="The top row uses all channels: it ranks the keys exactly, and no choice of channels can do better.",
            sources=origin(item, choice, calibrated),
        )


def steps(shown: list[Shown], at: View, choice: Choice, calibrated: Channels) -> None:
    st.subheader(f"What a decode step reads, layer {at.layer}", anchor=False)
    reads = {item.letter: read_of(item, at.layer, choice) for item in shown}
    if (
        any(read is None for read in reads.values())
        and not work.pending("reads")
        and st.button(f"Look at layer {at.layer}", key="look_at_layer", icon=":material/search:")
    ):
        look_at_layer(shown, at.layer, choice)
        st.rerun()
    work.watch("reads", lambda jobs: None)
    for column, item in zip(st.columns(len(shown)), shown, strict=True):
        read = reads[item.letter]
        if read is not None:
            with column:
                _step(item, read, at, choice, calibrated)


def _step(item: Shown, read: Read, at: View, choice: Choice, calibrated: Channels) -> None:
    """One query's keys; those that the pipeline's own eviction has dropped by then are marked."""
    head = at.head if isinstance(at.head, int) else 0
    dropped = item.trace.evicted_at[at.layer, head] <= at.step
    table = viz.read_table(read, item.trace.tokens, head, at.step, choice.share, dropped)
    hit = float(table.loc[table["read"], "exact"].sum())
    show_figure(
        viz.plot_read(table),
        table,
        name=f"decode_step_{item.letter}",
        caption=f"Keys of query {table['query'].iloc[0]} in layer {at.layer}, KV head {head}: those it read, and "
        "those worth reading.",
        read=f"{item.letter}: {int(table['read'].sum())} of {len(table)} keys are read and hold {hit:.0%} of the exact "
        f"attention; the best choice of as many holds {table.loc[table['ideal'], 'exact'].sum():.0%}.",
        sources=origin(item, choice, calibrated),
    )


def while_running(item: Shown) -> None:
    """What only a run can tell: channels that drift, and what an offloaded generation had ready."""
    trace = item.trace
    if trace.thinning is not None:
        st.subheader(f"{item.letter}: channels that left the keys for good", anchor=False)
        st.markdown(tell_thinned(trace))
    if trace.drift.size:
        st.subheader(f"{item.letter}: do the channels stay while it runs?", anchor=False)
        table = viz.drift_table(trace)
        show_figure(
            viz.plot_drift(table),
            table,
            name=f"drift_{item.letter}",
            caption="Share of the calibrated channels that are chosen again when channels are ranked by the text read so far.",
            read=f"{table['stayed'].mean():.0%} stay, over all layers and rankings.",
            sources=[(item.spec, trace)],
        )
    if trace.prefetch_hits.size:
        st.subheader(f"{item.letter}: what was ready when a layer asked for it", anchor=False)
        method = Pipeline.parse(item.spec.pipeline).decode
        assert isinstance(method, SelectionMethod)  # nothing else keeps its cache on the host
        table = viz.prefetch_table(trace, method.tokens_of)
        show_figure(
            viz.plot_prefetch(table),
            table,
            name=f"prefetch_{item.letter}",
            caption="Rows of the offloaded cache that had been fetched when a layer's own query asked for them.",
            read=f"{tell_fetched(trace)} Dotted: what a prediction by chance would have had ready.",
            sources=[(item.spec, trace)],
        )


def cost_curve(item: Shown, choice: Choice, calibrated: Channels) -> None:
    st.subheader("What reading less costs", anchor=False)
    specs = curve_specs(item, choice)
    points = points_of(specs)
    left = f"{len(specs) - len(points)} runs of this prompt, which can be cancelled and are kept one by one."
    work.offer_specs("curve", list(specs.values()), len(points), left, "Run the curve", "stacked_line_chart")
    if not points:
        return
    table = viz.curve_table(points)
    cost = choose_one("Cost", viz.CURVES, "channels_cost")
    show_figure(
        viz.plot_curve(table, cost),
        table,
        name="perplexity_curve",
        caption="Perplexity against the share of the context that is read (double_sparsity) or kept (eviction).",
        read=f"Each point is a run of this prompt, in which every token is predicted from the keys that its own step reads. "
        f"{choice.channels} channels; the first two layers read everything.",
        sources=origin(item, choice, calibrated),
    )


def answers(item: Shown, choice: Choice) -> None:
    """What the model says after this prompt when each step reads, or the cache keeps, so much."""
    st.subheader(f"What it answers, {viz.share_name(choice.share)} of the context", anchor=False)
    specs = answer_specs(item, choice)
    traces = traces_of(specs)
    why = f"{ANSWER} tokens after this prompt, from each method."
    work.offer_specs("answers", list(specs.values()), len(traces), why, "Ask them all", "question_answer")
    if traces:
        st.dataframe(viz.answer_table(traces), hide_index=True, width="stretch")
