"""Each paper's claim beside what was measured here, and the sweep that measures it again on this machine."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from sparsity_core import studies
from sparsity_core.record import Provenance
from sparsity_core.studies import Claim
from sparsity_core.work import EMBEDDED, Job
from ui import work
from ui.figure import show_figure
from ui.literal import code, literal
from ui.tasks import reproduce as task
from viz import reproduced as viz

_MARKS = {"same direction": "✓", "other direction": "✗", "cannot be told apart": "~"}

_ROW = 72  # px: three lines
_WIDTHS = {"claim": 300, "here": 150, "its numbers": 210, "its setting": 240, "paper": 260, "n": 50, "measured": 90}


def overview() -> None:
    """A row per claim: what the paper says, in which setting, with which numbers, and whether it holds here."""
    found = []
    for claim in studies.claims():
        rows, here = _rows(claim)
        direction = studies.direction_of(claim, rows)
        found.append(
            {
                "claim": claim.says,
                "here": f"{_MARKS.get(direction, '·')} {direction}",
                "its numbers": _reported(claim),
                "its setting": claim.setting,
                "paper": claim.paper,
                "n": rows["line"].nunique(),
                "measured": "on this machine" if here else "ships",
            }
        )
    st.dataframe(
        pd.DataFrame(found),
        hide_index=True,
        row_height=_ROW,
        height=_ROW * len(found) + 40,
        column_config={name: st.column_config.Column(width=width) for name, width in _WIDTHS.items()},
    )
    st.caption(
        f"Here is {EMBEDDED}, a small model, and the loss on passages of Python's language reference that no method was fitted "
        "to. A direction is told where 95 % of resamples of the passages agree on it; it is no reproduction of the paper's "
        "numbers, which are of larger models."
    )


def one_claim() -> None:
    """A claim by itself: the figure, each pair's verdict, how it was asked, and the button that asks again."""
    names = {claim.name: claim for claim in studies.claims()}
    if "claim" not in st.session_state and st.query_params.get("claim") in names:
        st.session_state["claim"] = st.query_params["claim"]
    claim = names[
        st.selectbox(
            "Claim", list(names), format_func=lambda name: f"{names[name].paper}: {names[name].says}", key="claim"
        )
    ]
    rows, here = _rows(claim)
    table = viz.reproduced_table(rows)
    st.subheader(literal(claim.says), anchor=False)
    st.markdown(f"**{literal(claim.paper)}.** {literal(claim.setting)}: {literal(_reported(claim))}.")
    for a, b, test in studies.pairs_of(claim, rows):
        real = test.verdict in ("better", "worse")
        st.markdown(
            f"{code(a)} {'is ' if real else ''}**{test.verdict}** {'than' if real else 'from'} {code(b)} here: "
            f"{test.difference:+.3f} nats a token (95 % of resamples: {test.low:+.3f} to {test.high:+.3f})."
        )
    made = "on this machine" if here else f"with {studies.shipped_with(claim)}"
    show_figure(
        viz.plot_reproduced(table),
        table,
        name=f"claim_{claim.name}",
        caption=f"Loss that each pipeline adds to the dense model's, over {rows['line'].nunique()} passages, measured {made}; "
        "the bar holds 95 % of resamples of the passages.",
        read=f"Left is better. {literal(claim.ours)} Measured {literal(made)}.",
        sources=Provenance(model=EMBEDDED, command=f"sparselens sweep {claim.grid.name} --out {claim.name}"),
    )
    _run(claim)
    with st.expander("The sweep that measures it", icon=":material/grid_on:"):
        st.code(claim.grid.read_text(encoding="utf-8"), language="yaml")


def claim_link() -> dict[str, str]:
    """The page's part of the address."""
    return {"claim": str(st.session_state["claim"])} if "claim" in st.session_state else {}


def _reported(claim: Claim) -> str:
    return ", ".join(f"{what} {value}" for what, value in claim.reported.items())


def _run(claim: Claim) -> None:
    purpose = f"claim {claim.name}"
    if not work.pending(purpose) and st.button(
        "Measure it on this machine", key="measure_claim", icon=":material/science:"
    ):
        work.submit(purpose, {purpose: partial(task.measure, claim.name)})
        st.rerun()
    work.watch(purpose, _forget)


def _rows(claim: Claim) -> tuple[pd.DataFrame, bool]:
    """The claim's rows, and whether they are this machine's."""
    own = _own(claim.name)
    return (studies.shipped_rows(claim), False) if own is None else (own, True)


@st.cache_resource(show_spinner=False)
def _own(name: str) -> pd.DataFrame | None:
    return studies.own_rows(studies.claim_named(name))


def _forget(jobs: dict[str, Job]) -> None:
    _own.clear()
