"""A needle hidden at many depths of haystacks of many lengths, and the run of each cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.evaluate import LENGTHS, NEW_TOKENS, Needle, NeedleFound
from sparsity_core.record import key_of
from sparsity_core.work import Job
from ui import shared, work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.model_facts import most_positions
from ui.session import Shown, open_run, trace_of
from ui.tasks import compare
from ui.tokens import atlas_of
from ui.view import View, request
from viz import compare as viz

_DEPTHS = {"5": "5", "3": "3", "11": "11"}  # whole percents, which the figure's axis says
_MOST_LENGTH, _MOST_SHARED = 32_768, 4096  # tokens
_KEPT = 64  # grids of this process, one a pipeline


@dataclass(frozen=True)
class _Grid:
    lengths: tuple[int, ...]
    depths: tuple[float, ...]


def haystack(shown: list[Shown], at: View) -> None:
    """The heatmap of each pipeline, and below it the run of a chosen cell."""
    st.subheader("A needle at every depth", anchor=False)
    grid = _ask(shown[0].spec.model)
    if not grid.lengths:
        st.info("Choose a length, one at least.")
        return
    keys = {item.title: _key(item, grid) for item in shown}
    missing = {
        keys[item.title]: partial(compare.haystack, item.spec, grid.lengths, grid.depths)
        for item in shown
        if keys[item.title] not in _known()
    }
    if missing and not work.pending("haystack"):
        st.caption(
            "RULER hides a number in a text that repeats itself, and asks for it. This hides it at every depth of every length, "
            f"and lets {'each pipeline' if len(shown) > 1 else 'the pipeline'} answer: {len(grid.lengths) * len(grid.depths)} "
            "runs each, which stay to be looked at."
        )
        if st.button("Hide needles", key="run_haystack", icon=":material/search:"):
            work.submit("haystack", missing)
            st.rerun()
    work.watch("haystack", _keep)
    found = {item.title: _known()[keys[item.title]] for item in shown if keys[item.title] in _known()}
    if found:
        _show(shown, found, at)


def _ask(model: str) -> _Grid:
    most = most_positions(model) or max(LENGTHS) + NEW_TOKENS  # not known before it is loaded
    longest = min(_MOST_SHARED if shared.is_shared() else _MOST_LENGTH, most - NEW_TOKENS)
    offered = [2**power for power in range(7, 16) if 2**power <= longest]
    row = st.container(horizontal=True, vertical_alignment="bottom")
    with row:
        lengths = st.multiselect(
            "Lengths",
            offered,
            [length for length in LENGTHS if length in offered],
            format_func="{:,}".format,
            key="haystack_lengths",
            help="tokens of the prompt with its question",
            width=420,
        )
        depths = int(choose_one("Depths", _DEPTHS, "haystack_depths"))
    return _Grid(tuple(sorted(lengths)), tuple(at / (depths - 1) for at in range(depths)))


def _show(shown: list[Shown], found: dict[str, list[NeedleFound]], at: View) -> None:
    table = viz.haystack_table(found)
    needles = {(cell.needle.length, cell.needle.depth): cell.needle for cells in found.values() for cell in cells}
    opened = next((place for place, n in needles.items() if n.prompt == shown[0].spec.prompt), None)
    score = table.groupby("pipeline", sort=False)["found"].agg(["sum", "size"])
    told = ", ".join(f"{str(name).partition(':')[0]} finds {n} of {of}" for name, n, of in score.itertuples())
    show_figure(
        viz.plot_haystack(table, opened),
        table,
        name="haystack",
        caption="Loss of the answer, in nats a token, and whether it was written, by the length of the prompt and the depth at "
        f"which a number is hidden in it (RULER's niah_single_1, one number; {'; '.join(found)}).",
        read=f"Dark: the number is likely; bright: it is not. {told}. {_told_question(shown)} Click a cell to open "
        "its runs.",
        sources=[(item.spec, item.trace) for item in shown if item.title in found],
        on_click=lambda point: st.session_state.update(haystack_wanted=_place(point)),
    )
    _choose(needles, opened)
    wanted = needles.get(st.session_state.pop("haystack_wanted", None))
    if wanted is not None:
        _open(shown, wanted)
    if opened is not None:
        _opened(shown, needles[opened], at)


def _told_question(shown: list[Shown]) -> str:
    unknown = [item.letter for item in shown if item.spec.question == "unknown"]
    if not unknown:
        return "The question is part of the prompt that a compression reads."
    who = "" if len(unknown) == len(shown) else f" to {', '.join(unknown)}"
    return f"The question is not known{who}: the prompt is compressed before it, and it comes a token at a time."


def _place(point: dict[str, Any]) -> tuple[int, float]:
    """The length and depth of a click, from what the axes say."""
    return int(str(point["x"]).replace(",", "")), float(str(point["y"]).rstrip("%")) / 100


def _choose(needles: dict[tuple[int, float], Needle], opened: tuple[int, float] | None) -> None:
    """The same choice as a click's, for the keyboard."""
    lengths, depths = (sorted({place[axis] for place in needles}) for axis in (0, 1))
    at = opened or (lengths[0], depths[0])  # part of the keys: another cell begins with its own
    with st.container(horizontal=True, vertical_alignment="bottom"):
        length = st.selectbox(
            "Length", lengths, lengths.index(at[0]), format_func="{:,}".format, key=f"haystack_length_{at}", width=130
        )
        depth = st.selectbox(
            "Depth", depths, depths.index(at[1]), format_func="{:.0%}".format, key=f"haystack_depth_{at}", width=130
        )
        if st.button("Open its runs", key="open_needle", icon=":material/grid_on:"):
            st.session_state["haystack_wanted"] = (length, depth)


def _open(shown: list[Shown], needle: Needle) -> None:
    """Makes a cell's runs those that every page shows, with the needle chosen."""
    runs = [compare.needle_run(item.spec, needle) for item in shown]
    if any(trace_of(run) is None for run in runs):
        st.warning("Its runs are no longer kept here: hide the needles again.")
        return
    open_run(*runs)
    request(token=needle.at)
    st.rerun()


def _opened(shown: list[Shown], needle: Needle, at: View) -> None:
    st.caption(
        f"All pages show the runs of {needle.length:,} tokens with the needle at {needle.depth:.0%}, which begins at token "
        f"{needle.at:,}. Each wrote: "
        + "; ".join(f"{item.letter} “{literal(' '.join(item.trace.continuation.split()))}”" for item in shown)
        + "."
    )
    letter = choose_one("Keep-mask of", {item.letter: item.letter for item in shown}, "haystack_mask")
    atlas_of(next(item for item in shown if item.letter == letter), shown, at)


def _key(item: Shown, grid: _Grid) -> str:
    return f"haystack {grid} {key_of(replace(item.spec, prompt='', generate=0))}"


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, list[NeedleFound]]:
    """What was found in this process, by pipeline and grid."""
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known = _known()
    known.update({key: job.result for key, job in jobs.items()})
    while len(known) > _KEPT:
        known.pop(next(iter(known)))
