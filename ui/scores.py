"""Which tokens' scores are drawn and how finely, and how far a run is from the ideal mask."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Trace, key_of
from sparsity_core.work import Job
from ui import work
from ui.columns import side_by_side
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import code
from ui.session import Shown, looks_of
from ui.tasks import runs
from ui.view import View
from viz import cost, scores

_MOST_LINES = 6


def choose_tokens(trace: Trace, at: View) -> list[int]:
    """The tokens to draw, chosen on the page: at first the followed token and some that tell a story."""
    suggested = _suggest(trace, at)
    key = f"tokens_{trace.provenance.prompt_hash}_{at.layer}_{at.token}"
    return st.multiselect(
        "Tokens",
        range(trace.n_tokens),
        default=suggested,
        format_func=lambda i: f"{i} {trace.tokens[i]}",
        max_selections=_MOST_LINES,
        key=key,
        help="at most six; the token chosen above is the first",
    )


def _suggest(trace: Trace, at: View) -> list[int]:
    """The followed token, the key that held out longest before it fell, a late survivor, and the first token."""
    head = at.head if isinstance(at.head, int) else 0
    evicted_at = trace.evicted_at[at.layer, head]
    lifetime = np.where(evicted_at < trace.n_tokens, evicted_at - np.arange(trace.n_tokens), -1)
    survivors = np.flatnonzero(evicted_at >= trace.n_tokens)
    picks = [at.token, 0, int(lifetime.argmax()), *survivors[len(survivors) // 2 : len(survivors) // 2 + 1].tolist()]
    return list(dict.fromkeys(int(p) for p in picks))[:4]


def refilled_scores(item: Shown, layer: int, runs_shown: int) -> tuple[np.ndarray, np.ndarray] | None:
    """This layer's scores at every step, once asked for; the trace's own snapshots serve until then."""
    key = f"refill {key_of(item.spec)} {layer}"
    filled = st.session_state.setdefault("refilled", {})
    if key in filled:
        return filled[key]

    def keep(jobs: dict[str, Job]) -> None:
        filled.update({k: job.result for k, job in jobs.items()})
        while len(filled) > runs_shown:  # a layer of each: a long text's scores are large
            del filled[next(iter(filled))]

    n = len(item.trace.snapshot_steps)
    offered = n < item.trace.n_tokens and not work.pending(key)
    if offered and st.button(
        f"{item.letter}: every step of this layer",
        key=f"button_{key}",
        icon=":material/timeline:",
        help=f"the trace holds scores at {n} steps; this computes layers 0 to {layer} again for all the others",
    ):
        work.submit(key, {key: partial(runs.refill_scores, item.spec, item.trace, layer)})
        st.rerun()
    work.watch(key, keep)
    return None


def accumulated(shown: list[Shown], at: View) -> None:
    """The chosen tokens' scores over the steps, side by side on one axis."""
    positions = choose_tokens(shown[0].trace, at)
    head = at.head if isinstance(at.head, int) else 0
    with st.container(horizontal=True, vertical_alignment="center"):
        log = st.toggle("Logarithmic", value=True, key="log_scores", width="content")
        scored = [item for item in shown if scores.has_scores(item.trace, at.layer, head)]
        fine = {item.letter: refilled_scores(item, at.layer, len(shown)) for item in scored}
    tables = {s.letter: scores.score_table(s.trace, at.layer, head, positions, fine.get(s.letter)) for s in shown}
    limits = scores.shared_range(list(tables.values()), log)
    for column, item in side_by_side(shown):
        table = tables[item.letter]
        with column:
            if not scores.has_scores(item.trace, at.layer, head):
                st.info(f"{item.letter}: {code(cost.label(item.trace))} keeps no scores here: {_why_no_scores(item)}.")
                continue
            figure = scores.plot_scores(table, step=at.step, log=log).update_yaxes(range=limits)
            show_figure(
                figure,
                table,
                name=f"scores_{item.letter}",
                caption=f"Accumulated scores in layer {at.layer}, KV head {head} ({cost.label(item.trace)}).",
                read=f"{item.letter}, KV head {head}. A token is dropped (×) when its score is the lowest of those that are not "
                "protected. The grey line is the score of the token that each step dropped.",
                sources=[(item.spec, item.trace)],
            )


def _why_no_scores(item: Shown) -> str:
    stages = Pipeline.parse(item.spec.pipeline)
    if stages.prefill is not None and stages.eviction is None:
        return "under a prefill method, attention is scored only for an eviction method beside it, and none runs"
    return "it decides by position alone"


def against_dense(shown: list[Shown], at: View) -> None:
    """How close each run that was compared with the dense model came to the ideal mask, and its regret."""
    compared = {s.title: s.trace for s in shown if s.trace.compared}
    if not compared:
        return
    st.subheader("Against the ideal mask", anchor=False)
    sources = [(s.spec, s.trace) for s in shown]
    measure = choose_one("Measure", cost.MEASURES, "similarity")
    table = cost.similarity_table(compared, at.head)
    show_figure(
        cost.plot_similarity(table, looks_of(shown), measure, at.layer),
        table,
        name="similarity",
        caption="Similarity of the kept keys to the dense model's own top keys of equal number, by layer, "
        f"{at.mean_heads}.",
        read="The ideal mask keeps as many keys at each step: those that the dense model attends to most. The cosine weighs "
        "each key by that attention.",
        sources=sources,
    )
    st.subheader("Regret by layer and head", anchor=False)
    tables = {name: cost.regret_table(trace, at.step) for name, trace in compared.items()}
    show_figure(
        cost.plot_regret(tables),
        pd.concat(tables, names=["pipeline"]).reset_index("pipeline"),
        name="regret",
        caption=f"Regret by layer and query head, mean up to step {at.step} ({'; '.join(compared)}).",
        read="The share of the dense model's attention that goes to keys which a pipeline has evicted by then.",
        sources=[(s.spec, s.trace) for s in shown if s.trace.compared],
    )
