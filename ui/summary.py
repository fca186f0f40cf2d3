"""The numbers of each run at a glance, and what was computed how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sparsity_core.record import Trace
from ui.answers import answers
from ui.figure import generated_tokens
from ui.glossary import told
from ui.knobs import folded
from ui.literal import code, literal
from ui.session import EXAMPLE, FIVE_STAGES, Shown, open_run, visit_at
from ui.visits import offer_visits
from viz.cost import label, prompt_perplexity

_ANSWERS = 2  # runs whose texts and provenance stand on every page; of more Compare and a fold have them
_WIDTH = 135  # px of a metric; a row wraps where it is too narrow for all
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def summary(shown: list[Shown]) -> None:
    """The figures of one run; of several a table, beside the dense model's."""
    if [item.spec for item in shown] == [EXAMPLE] and not visit_at()[0]:
        st.title("SparseLens: what sparse inference throws away", anchor=False)
        st.markdown(
            "Five lines of work prune what a large language model computes: its context, its cache, its channels, its prompt's "
            "attention and its weights. SparseLens runs a real model through any of them and shows which tokens, channels and "
            "neurons go, when, and what it costs. Below, a run that came with it dropped most of the prompt at the left, while "
            "the dense model still finds the answer in it: change any setting there and press Run."
        )
        offer_visits().button(
            "Show a run of all five stages",
            key="five_stages",
            icon=":material/account_tree:",
            on_click=open_run,
            args=(FIVE_STAGES,),
            help="the same prompt: neurons cut, tokens dropped by a trained gate, a sparse prefill, an eviction and sparse reads",
        )
    if len(shown) > 1:
        _compact(shown)
    for item in shown if len(shown) == 1 else ():
        st.markdown((f"{literal(item.name)} · " if item.name else "") + code(label(item.trace)))
        _figures(item)
        for note in item.trace.notes:
            st.info(note)
    if len(shown) <= _ANSWERS:
        answers(shown)
    if len(shown) == 1:
        st.caption(told_provenance(shown[0].trace))


def _compact(shown: list[Shown]) -> None:
    """The figures of several runs as a table, and below it what they were computed with."""
    st.dataframe(
        figures_table(shown),
        hide_index=True,
        column_config={name: st.column_config.NumberColumn(format=form) for name, form in _FORMATS.items()},
    )
    for note in dict.fromkeys(f"{item.letter}: {note}" for item in shown for note in item.trace.notes):
        st.info(note)
    if len(shown) <= _ANSWERS:
        for item in shown:
            st.caption(f"{item.letter}: {told_provenance(item.trace)}")
        return
    with folded("What each was computed with", "told_provenance") as opened:
        if opened:
            for item in shown:
                st.caption(f"{item.letter}: {told_provenance(item.trace)}")


def figures_table(shown: list[Shown]) -> pd.DataFrame:
    """One row a run, the dense model's before them where none of them is it, and after two what B has more than A."""
    rows = [_row(item) for item in shown]
    if all(item.trace.provenance.pipeline != "dense" for item in shown):
        one = shown[0].trace
        dense = {"pipeline": "dense", "perplexity": prompt_perplexity(one)[1], "KV cache": one.kv_bytes_dense}
        rows.insert(
            0, {**dense, "to dense": 0.0, "of dense": 1.0, "keys kept": 1.0, "regret": 0.0, "same top token": 1.0}
        )
    if len(shown) == 2:
        a, b = rows[-2:]
        rows.append({"pipeline": "B − A", **{name: b[name] - a[name] for name in _FORMATS}})
    columns = list(_row(shown[0]))
    words = {name: "" for name in columns if name not in _FORMATS}
    return pd.DataFrame([{**words, **row} for row in rows], columns=columns)


_FORMATS = {
    "perplexity": "%.2f",
    "to dense": "%+.2f",
    "KV cache": "bytes",
    "of dense": "percent",
    "keys kept": "percent",
    "regret": "percent",
    "same top token": "percent",
}


def _row(item: Shown) -> dict[str, Any]:
    trace = item.trace
    pruned, dense = prompt_perplexity(trace)
    return {
        "": item.letter,
        "pipeline": item.name or label(trace),
        "tokens": f"{trace.n_prompt} + {generated_tokens(item.spec, trace)}",
        **({"question": trace.provenance.question} if trace.provenance.question else {}),
        "perplexity": pruned,
        "to dense": pruned - dense,
        "KV cache": trace.kv_bytes,
        "of dense": trace.kv_bytes / trace.kv_bytes_dense if trace.kv_bytes_dense else np.nan,
        "keys kept": trace.density(),
        "regret": float(trace.regret.mean()) if trace.compared else np.nan,
        "same top token": _mean(trace.top1_agrees) if trace.compared else np.nan,
    }


def _figures(item: Shown) -> None:
    """The figures of one run, side by side."""
    trace = item.trace
    row = st.container(horizontal=True, gap="small")
    row.metric(
        "Tokens",
        f"{trace.n_prompt} + {generated_tokens(item.spec, trace)}",
        help="prompt + generated. Figures leave out the last generated token, which the model never reads",
        width=_WIDTH,
    )
    pruned, dense = prompt_perplexity(trace)
    same = f"{pruned:.2f}" == f"{dense:.2f}"
    row.metric(
        "Perplexity",
        f"{pruned:.2f}" if np.isfinite(pruned) else "–",
        ("as dense" if same else f"{pruned - dense:+.2f} to dense") if np.isfinite(pruned - dense) else None,
        delta_color="off" if same else "inverse",
        delta_arrow="off" if same else "auto",
        help="exp of the mean −log p of the prompt's tokens, from the second on, under the pipeline. A method that cuts once, "
        "after the prompt, reads the prompt as the dense model does. One that looks ahead has none: later tokens decide what "
        "earlier ones see",
        width=_WIDTH,
    )
    row.metric(
        "KV cache",
        tell_bytes(trace.kv_bytes) if trace.kv_bytes_dense else "–",
        f"{trace.kv_bytes / trace.kv_bytes_dense:.0%} of dense" if trace.kv_bytes_dense else None,
        delta_color="off",
        delta_arrow="off",
        help="bytes that the keys and values of every layer hold at the end",
        width=_WIDTH,
    )
    row.metric(
        "Keys kept",
        f"{trace.density():.0%}",
        help="share of the causal (query, key) pairs that no stage dropped for good",
        width=_WIDTH,
    )
    _prefill_figures(row, trace)
    if trace.compared:
        row.metric(
            "Regret",
            f"{trace.regret.mean():.1%}",
            help=told("regret"),
            width=_WIDTH,
        )
        row.metric(
            "Same top token",
            _share(trace.top1_agrees),
            help="share of the measured positions at which the dense and the pruned model predict the same next token",
            width=_WIDTH,
        )


def _prefill_figures(row: DeltaGenerator, trace: Trace) -> None:
    """How much of itself the prompt saw, where a prefill method hid the rest."""
    if trace.prefill is None:
        return
    shown = trace.prefill.shown[..., : trace.n_at_once]
    row.metric(
        "Prompt seen",
        f"{shown.mean() / ((trace.n_at_once + 1) / 2):.0%}",
        help="share of the prompt's causal (query, key) pairs that the prefill method shows, over all layers. The keys stay in "
        "the cache, and what comes after the prompt sees them",
        width=_WIDTH,
    )
    if trace.compared:
        row.metric(
            "Coverage",
            _share(trace.prefill.coverage),
            help=told("coverage"),
            width=_WIDTH,
        )


def _share(values: np.ndarray) -> str:
    """The mean of what is known as a percentage, or a dash."""
    mean = _mean(values)
    return "–" if np.isnan(mean) else f"{mean:.0%}"


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; nan of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def told_provenance(trace: Trace) -> str:
    """What one run was computed with, and how long that took."""
    made = trace.provenance
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in made.seconds.items())
    question = f" · question {made.question}" if made.question else ""
    return (
        f"{literal(made.model)} · weights {made.fingerprint} · {made.dtype} on {made.device} · "
        f"{', '.join(made.backends)} kernels{question} · {seconds}, computed when this trace was made"
    )


def tell_bytes(n: int) -> str:
    """Bytes in the largest unit of which there is one, with a decimal below ten: a number of three digits fits a metric."""
    unit, size = next(((name, n / of) for name, of in _UNITS.items() if n >= of), ("KiB", n / 2**10))
    return f"{size:.1f} {unit}" if round(size, 1) < 10 else f"{size:.0f} {unit}"
