"""Does the score know what matters? Asked of every method at once, by dropping tokens one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.kinds import spelled_stages
from sparsity_core.record import Trace
from sparsity_core.studies import ALL_LAYERS, EFFECTS, JudgeStudy
from sparsity_core.work import Job
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown
from ui.tasks import judges as task
from ui.view import View
from viz import judges as viz

_DROPS = (32, 64, 128)
_WIDTHS = {1: "one token", 4: "4 neighbouring tokens", 16: "16 neighbouring tokens"}
_LAYERS = {0: "from all layers at once", 4: "and from every 4th layer alone", 1: "and from every layer alone"}
_EFFECTS = {"kl": "KL to dense", "nll": "Loss of the next token"}
_AFTER = 8  # queries after the step, at least
_LINES = 4  # judges that are drawn over the layers
_KEPT = 16  # studies of this process


@dataclass(frozen=True)
class _Asked:
    step: int
    drops: int
    width: int
    every: int


def judged(item: Shown, at: View) -> None:
    """What the drops did, each judge's order of them, where in the model, and one judge's drops."""
    st.subheader("Does the score know what matters?", anchor=False)
    if item.trace.n_tokens < 2 * _AFTER + 2:
        st.info(f"The text has {item.trace.n_tokens} tokens, too few to drop some and read on: choose a longer one.")
        return
    asked = _ask(item.trace)
    key = _key(item.trace, asked)
    study = _known().get(key)
    if study is None and not work.pending("judges"):
        st.caption(
            "A score is a guess at what the model will miss. This drops sampled tokens from the dense model's cache, one drop at "
            "a time, reads on, and holds what that changed against the order in which every method would have dropped them."
        )
        if st.button("Drop and see", key="run_judges", icon=":material/content_cut:"):
            ids = tuple(item.trace.token_ids.tolist())
            work.submit(
                "judges",
                {key: partial(task.judge, item.spec, ids, asked.step, asked.drops, asked.width, asked.every)},
            )
            st.rerun()
    work.watch("judges", _keep)
    if study is not None:
        _show(item, study, at)


def _ask(trace: Trace) -> _Asked:
    last = trace.n_tokens - 2 - _AFTER
    first = trace.n_prompt - 1 if trace.n_prompt - 1 <= last else max(_AFTER, last - 24)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        step = st.number_input(
            "Dropped after token", _AFTER, last, first, key="judges_step", width=170, help="the tokens up to it may go"
        )
        drops = st.selectbox("Drops", _DROPS, key="judges_drops", width=110, help="drawn at random with the run's seed")
        width = st.selectbox(
            "A drop takes", list(_WIDTHS), format_func=_WIDTHS.__getitem__, key="judges_width", width=230
        )
        every = st.selectbox("Dropped", list(_LAYERS), format_func=_LAYERS.__getitem__, key="judges_layers", width=270)
    return _Asked(int(step), int(drops), int(width), int(every))


def _key(trace: Trace, asked: _Asked) -> str:
    made = trace.provenance
    return f"judges {made.fingerprint} {made.dtype} {made.seed} {hash(trace.token_ids.tobytes())} {asked}"


def _show(item: Shown, study: JudgeStudy, at: View) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        effect = choose_one("Effect", _EFFECTS, "judges_effect")
        place = st.selectbox(
            "Dropped from",
            [int(place) for place in study.places],
            format_func=lambda place: "all layers" if place == ALL_LAYERS else f"layer {place} alone",
            key=f"judges_place_{len(study.places)}",
            width=190,
        )
    table = viz.verdicts_table(study, place, effect)
    where = "all layers" if place == ALL_LAYERS else f"layer {place}"
    how = f"{len(study.keys)} drops from {where} after token {study.step}, over the {study.horizon} queries after it"
    show_figure(
        viz.plot_verdicts(table),
        table,
        name="judges",
        caption=f"Rank correlation of each method's scores with the {EFFECTS[effect]} of {how}; 95 % intervals.",
        read=f"At 1 a method would drop last what the model misses most; at 0 its order says nothing. {how[0].upper()}{how[1:]}. "
        "“Attention to come” has seen those queries, which no method can. Intervals that overlap tell no difference.",
        sources=[(item.spec, item.trace)],
    )
    if study.left_out:
        st.caption(
            "Not here: " + "; ".join(f"{literal(viz.short(j))}, {literal(why)}" for j, why in study.left_out) + "."
        )
    if len(study.places) > 1:
        lines = viz.judge_layers_table(study, table["judge"].head(_LINES).tolist(), effect)
        show_figure(
            viz.plot_judge_layers(lines, at.layer),
            lines,
            name="judges_layers",
            caption=f"Rank correlation of scores and effect by the layer that lost the tokens; the {_LINES} best above.",
            read="A layer where a line falls is one where the method's scores do not know what matters.",
            sources=[(item.spec, item.trace)],
        )
    names, own = table["judge"].tolist(), {call.partition("(")[0] for _, call in spelled_stages(item.spec.pipeline)}
    first = next((at for at, name in enumerate(names) if viz.short(name) in own), 0)
    judge = st.selectbox("Judge", names, first, format_func=viz.short, key="judges_judge", width=260)
    drops = viz.drops_table(study, item.trace.tokens, judge, place)
    show_figure(
        viz.plot_drops(drops, effect),
        drops,
        name="judges_drops",
        caption=f"Rank of each dropped token by {viz.short(judge)} against the {EFFECTS[effect]}: {how}.",
        read="Each mark is a drop; the five that mattered most are named. Marks at the upper left are tokens that this method "
        f"would have dropped and the model misses. Where nothing is dropped, rounding alone gives a KL of {study.noise:.0e}.",
        sources=[(item.spec, item.trace)],
    )


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, Any]:
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known = _known()
    known.update({key: job.result for key, job in jobs.items()})
    while len(known) > _KEPT:
        known.pop(next(iter(known)))
