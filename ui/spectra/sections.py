"""The sections of the Spectra page, from top to bottom."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sparsity_core import studies
from sparsity_core.record import RunSpec
from sparsity_core.studies import Uncut, WeightStudy
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.spectra.choice import Choice, look_at, origin
from ui.spectra.jobs import begin_layer, compute_studies, compute_uncut, live_cut, prepare
from ui.spectra.known import identity, ranked_of, study_of, tell_missing, tell_problems, uncut_of
from viz import spectra as viz


def offer_measuring(spec: RunSpec) -> Uncut | None:
    """The model's spectra before any cut, or the button that measures them."""
    who = identity(spec)
    uncut = uncut_of(who) if who else None
    if uncut is None:
        st.info("The spectra of this model have not been measured here yet.")
        if not work.pending("spectra") and st.button("Measure them", key="measure", icon=":material/straighten:"):
            compute_uncut(spec)
            st.rerun()
    work.watch("spectra", tell_problems)
    return uncut


def spectrum(choice: Choice, study: WeightStudy | None) -> np.ndarray | None:
    """The chosen matrix before and after. Returns which of the layer's neurons stay, where that is known."""
    title, axes = st.columns([3, 2], vertical_alignment="bottom")
    title.subheader(f"Singular values of {choice.matrix}, layer {choice.layer}", anchor=False)
    with axes:
        view = choose_one("Axes", viz.VIEWS, "spectra_view")
    ranked = ranked_of(choice.who, choice.method)
    prepare(choice)
    after = study.spectrum(choice.layer, choice.matrix) if study else None
    if study is not None and after is not None:
        before, kept = choice.uncut.spectrum(choice.layer, choice.matrix), study.kept[choice.layer]
        measures = study.of(choice.layer, choice.matrix)
    elif ranked is not None and (live := live_cut(choice, ranked)) is not None:
        cut, kept = live
        before, after, measures = cut.before, cut.after, cut.measures
    elif ranked is not None:
        begin_layer(choice)
        work.watch("layer", tell_problems)
        return studies.kept_neurons(ranked.importance[choice.layer], choice.method)
    else:
        _offer(choice, tell_missing(study))
        work.watch("layer", tell_problems)
        return study.kept[choice.layer] if study else None
    work.watch("layer", tell_problems)
    table, risen = viz.spectrum_table(before, after), viz.risen(before, after)
    drawn, numbers = st.columns([3, 1.6], gap="medium")
    with drawn:
        show_figure(
            viz.plot_spectrum(table, measures, method=choice.method.name, view=view),
            table,
            name="spectrum",
            caption=f"Singular values of {choice.matrix} in layer {choice.layer} before and after {choice.method}.",
            read=f"{risen:.0%} of the singular values rose: this method changes what it keeps, and D counts both directions."
            if risen
            else "No singular value rose, as none does where rows are cut: D measures shrinkage in one direction.",
            sources=origin(choice),
        )
    numbers.markdown(_numbers(measures))
    return kept


def _numbers(measures: dict[str, float]) -> str:
    rows = {
        "reached at σ": f"{measures['ks_at']:.3g}",
        "D ÷ √(1\u00a0−\u00a0ratio)": f"{measures['scaled_ks']:.4f}",
        "Wasserstein ÷ mean": f"{measures['wasserstein']:.4f}",
        "Energy lost, ΔF²": f"{measures['energy_lost']:.1%}",
        "Stable rank": f"{measures['stable_rank_before']:.1f} → {measures['stable_rank_after']:.1f}",
        "Effective rank": f"{measures['effective_rank_before']:.0f} → {measures['effective_rank_after']:.0f}",
    }
    lines = [f"| D | {measures['ks']:.4f} |", "|:---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join(lines).replace(" → ", "\u00a0→\u00a0").replace(" ÷ ", "\u00a0÷\u00a0")


def _offer(choice: Choice, why: str) -> None:
    """The button that computes the chosen study."""
    if not work.pending("study"):
        st.caption(why)
        if st.button(
            f"Compute {literal(str(choice.method))}",
            key="compute_study",
            icon=":material/play_arrow:",
            help="cuts every layer, then measures every spectrum and the perplexity",
        ):
            compute_studies("study", choice, [choice.method])
            st.rerun()


def distances(choice: Choice, study: WeightStudy | None) -> None:
    title, chosen = st.columns([3, 3.2], vertical_alignment="bottom")
    title.subheader("Every layer and matrix", anchor=False)
    with chosen:
        measure = choose_one("Distance", viz.DISTANCES, "spectra_distance")
    work.watch("study", tell_problems)
    if study is None:
        if ranked_of(choice.who, choice.method) is not None:  # else it is offered above
            _offer(choice, f"At this ratio, layer {choice.layer} alone has been computed.")
        return
    table = viz.distance_table(study)
    show_figure(
        viz.plot_distances(table, measure, (choice.layer, choice.matrix)),
        table,
        name="distances",
        caption=f"{viz.DISTANCES[measure]} of every FFN matrix under {choice.method}.",
        read="How far each matrix's singular values moved. Click a cell to see its spectrum above.",
        sources=origin(choice),
        on_click=look_at,
    )


def neurons(choice: Choice, kept: np.ndarray | None) -> None:
    if kept is None:
        return
    st.subheader(f"Which neurons go, layer {choice.layer}", anchor=False)
    if kept.all() and choice.ratio > 0:
        st.caption("This method cuts no neurons.")
        return
    ranked, uncut, layer = ranked_of(choice.who, choice.method), choice.uncut, choice.layer
    importance = ranked.importance[layer] if ranked else np.zeros(0)
    table = viz.neuron_table(importance, uncut.row_norm[layer], uncut.leverage[layer], kept)
    show_figure(
        viz.plot_neurons(table, first=uncut.first),
        table,
        name="neurons",
        caption=f"Neurons of layer {layer} that {choice.method} keeps and cuts.",
        read="Each mark is a neuron: one row of gate and up, and the same column of down. Hover over it to see its number.",
        sources=origin(choice),
    )


def policy_training(choice: Choice) -> None:
    history = studies.find_history(choice.uncut.fingerprint, choice.method)
    if history is None:
        return
    st.subheader("How the policy learned", anchor=False)
    table = viz.history_table(history)
    show_figure(
        viz.plot_history(table, method=choice.method.name, starts=history.starts),
        table,
        name="history",
        caption=f"Mean D and mean reward of the policy by episode, trained at a ratio of {history.ratio:g}.",
        read="Means over the layers. D is that of the neurons which the policy ranks highest; the reward is 1 / D "
        "of those it drew at random.",
        sources=origin(choice),
    )


def comparison(choice: Choice) -> None:
    ratio = choice.ratio or studies.RATIO
    wanted = list(dict.fromkeys([*studies.contenders(ratio), studies.at_ratio(choice.method, ratio)]))
    measured = {str(m): s for m in wanted if (s := study_of(choice.who, m)) and not np.isnan(s.perplexity)}
    missing = [m for m in wanted if str(m) not in measured]
    st.subheader(f"Every method at a ratio of {ratio:.0%}: what D tells of the cost", anchor=False)
    if measured:
        table = viz.comparison_table(list(measured.values()), choice.matrix)
        show_figure(
            viz.plot_comparison(table, choice.matrix, str(choice.method)),
            table,
            name="comparison",
            caption=f"Rise in perplexity against mean D of {choice.matrix}, at a ratio of {ratio:g}. "
            f"Perplexity on {next(iter(measured.values())).convention}.",
            read="Lower is cheaper; further left is closer to the uncut spectrum. Random neurons are the baseline; their "
            f"bars are the extremes of its seeds. {viz.tell_cost(table)} "
            f"Perplexity on {next(iter(measured.values())).convention}.",
            sources=origin(choice),
        )
    if missing and not work.pending("comparison"):
        st.caption(literal(f"Not computed here yet: {', '.join(map(str, missing))}."))
        if st.button(f"Compute the {len(missing)} missing", key="compute_comparison", icon=":material/play_arrow:"):
            compute_studies("comparison", choice, missing)
            st.rerun()
    work.watch("comparison", tell_problems)
