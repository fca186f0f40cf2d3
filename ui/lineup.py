"""The pipelines of the run bar: a list of texts, one of them open for editing and each other folded into a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import streamlit as st

from sparsity_core.kinds import Method, Pipeline
from sparsity_core.work import explain
from ui.address import LETTERS, MOST_NAME, check_name
from ui.knobs import DENSE, aside_picker, joined, method_picker
from ui.literal import literal
from ui.presets import another, presets
from ui.session import forget_widgets, give_name, name_of, specs

_LINE = 34  # characters that a line of the sidebar holds


def pipelines_asked() -> list[str]:
    """The texts of the run bar's pipelines, to be changed in place; at first those of the runs on the page."""
    return st.session_state.setdefault("pipelines", [spec.pipeline for spec in specs()])


def choose_pipelines() -> tuple[list[str], list[str]]:
    """Draws the list. Returns the pipelines' texts, and what is wrong with the settings of the open one."""
    texts, opened, problems = pipelines_asked(), _opened(), list[str]()
    for at, text in enumerate(texts):
        if at != opened:
            _line(at, text)
            continue
        with st.container(border=len(texts) > 1, key=f"pipeline_{LETTERS[at]}"):
            if len(texts) > 1:
                _handles(at, text, len(texts))
            edited, problems = _settings(LETTERS[at], Pipeline.parse(text))
            if not problems and edited != text:
                if name_of(text):
                    give_name(edited, name_of(text))
                texts[at] = edited
    _additions(texts, opened)
    return list(texts), problems


def _opened() -> int:
    return min(int(st.session_state.get("opened", 0)), len(pipelines_asked()) - 1)


def _settings(letter: str, current: Pipeline) -> tuple[str, list[str]]:
    """(the text that the widgets say, what is wrong with them). Draws every setting, whatever is wrong with another."""
    problems: list[str] = []

    def stage(pick: Callable[[str, Method | None], str], own: Method | None) -> str:
        try:
            return pick(letter, own)
        except ValueError as error:
            problems.append(explain(error))
            return DENSE

    eviction = stage(method_picker, current.eviction)
    weights = stage(partial(aside_picker, "weights"), current.weights)
    gate = stage(partial(aside_picker, "gate"), current.gate)
    prefill = stage(partial(aside_picker, "prefill"), current.prefill)
    decode = stage(partial(aside_picker, "decode"), current.decode)
    return joined(weights, gate, prefill, eviction, decode), problems


def _line(at: int, text: str) -> None:
    """A pipeline that is not open: its letter and name, or as much of its text as a line holds."""
    said = name_of(text) or "; ".join(map(str, Pipeline.parse(text).methods.values())) or DENSE
    short = said if len(said) <= _LINE else f"{said[: _LINE - 1]}…"
    st.button(
        f"**{LETTERS[at]}** {literal(short)}",
        key=f"open_{LETTERS[at]}",
        icon=":material/edit:",
        help=f"opens its settings: {literal(text)}",
        width="stretch",
        on_click=_open,
        args=(at,),
    )


def _handles(at: int, text: str, n: int) -> None:
    """The open pipeline's name, and the buttons that move, copy and remove it."""
    letter, key = LETTERS[at], f"{LETTERS[at]}_name"
    if key not in st.session_state:
        st.session_state[key] = name_of(text)
    name = st.text_input(f"Name {letter}", key=key, max_chars=MOST_NAME, placeholder="its settings", help="in legends")
    if name.strip() != name_of(text):
        try:
            check_name(name.strip())
        except ValueError as error:
            st.warning(literal(explain(error)))
        else:
            give_name(text, name.strip())
            st.rerun()  # the page's legends say it
    row = st.container(horizontal=True, gap="small")
    for label, icon, does, off in (
        ("Move up", "arrow_upward", partial(_move, at, -1), at == 0),
        ("Move down", "arrow_downward", partial(_move, at, 1), at == n - 1),
        ("Duplicate", "content_copy", partial(_insert, at, text), n == len(LETTERS)),
        ("Remove", "delete", partial(_remove, at), n == 1),
    ):
        row.button(
            "",
            key=f"{icon}_{letter}",
            icon=f":material/{icon}:",
            help=f"{label} {letter}",
            on_click=does,
            disabled=off,
        )


def _additions(texts: list[str], opened: int) -> None:
    """Another pipeline beside those of the list, or a whole list at once: of the stage that the page is about."""
    stage = st.session_state.get("stage", "")
    row = st.container(horizontal=True, gap="small")
    row.button(
        "Add a pipeline",
        key="add_pipeline",
        icon=":material/add:",
        disabled=len(texts) == len(LETTERS),
        help=f"side by side with the others; {len(LETTERS)} at most",
        on_click=lambda: _insert(len(texts) - 1, another(texts)),
    )
    lists = row.popover("Lists", key="preset_lists", on_change="rerun", help="a whole list of pipelines at once")
    if lists.open:
        with lists:
            for name, preset in presets(stage).items():
                found = preset.made_of(Pipeline.parse(texts[opened]))
                st.button(
                    preset.label,
                    key=f"preset_{name}",
                    width="stretch",
                    disabled=len(found) < 2,
                    help=literal("; ".join(found)),
                    on_click=_replace,
                    args=(found,),
                )
            st.caption(f"Made from {LETTERS[opened]}, in the place of all others; {len(LETTERS)} at most.")


def _open(at: int) -> None:
    forget_widgets(LETTERS)  # what could not be read of the one that was open is left at its last valid setting
    st.session_state["opened"] = at


def _replace(texts: list[str]) -> None:
    st.session_state["pipelines"] = list(texts)
    _open(0)


def _insert(at: int, text: str) -> None:
    """Puts a pipeline behind the one at this place, and opens it."""
    pipelines_asked().insert(at + 1, text)
    _open(at + 1)


def _remove(at: int) -> None:
    del pipelines_asked()[at]
    _open(max(0, at - 1))


def _move(at: int, by: int) -> None:
    texts = pipelines_asked()
    texts[at], texts[at + by] = texts[at + by], texts[at]
    _open(at + by)
