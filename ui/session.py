"""What a browser session looks at: the runs shown, where in them, and the address that brings both back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import streamlit as st

from sparsity_core.record import RunSpec, Store, Trace, View, key_of
from sparsity_core.work import Recent, explain, keeps
from ui import shared
from ui.address import EXAMPLE as EXAMPLE
from ui.address import FIVE_STAGES as FIVE_STAGES
from ui.address import LETTERS, VIEW, places_of, read_address, write_address
from ui.address import MOST_NEW as MOST_NEW
from ui.address import MOST_SEED as MOST_SEED
from ui.compat import came_by_history
from ui.first_look import painted
from ui.trust import may_look_up, propose
from viz import Look, distinct_looks
from viz.cost import label, method_of

# Widgets of the run bar that hold a run's settings, beside those of each pipeline, whose keys begin with its letter.
_SETTINGS = (
    "model",
    "prompt_choice",
    "prompt_text",
    "pipelines",
    "opened",
    "generate",
    "seed",
    "device",
    "dtype",
    "add_bos",
    "question",
)
_MOST_LETTERS_IN_A_FILE = 100_000  # of a prompt in a figure's file; a longer one is found again where it was run
_MOST_TRACE_BYTES = 512 * 1024**2  # in memory, of all sessions together


@dataclass(frozen=True)
class Shown:
    """One pipeline on the page: "A", or "B" to "H" beside it, with the name that the user gave it."""

    letter: str
    spec: RunSpec
    trace: Trace
    name: str = ""

    @property
    def title(self) -> str:
        """What a legend calls it."""
        return f"{self.letter}: {self.name or label(self.trace)}"


def looks_of(shown: Sequence[Shown]) -> dict[str, Look]:
    """The look of each pipeline on the page, by its title: its method's own, another dash and mark for a second of one method."""
    looks = distinct_looks([method_of(item.trace) for item in shown])
    return {item.title: look for item, look in zip(shown, looks, strict=True)}


def specs() -> list[RunSpec]:
    """The specs that the page shows, from A on: one run under one pipeline, or under several."""
    return st.session_state.specs


def shown() -> list[Shown]:
    """The traces of the page's specs, as far as they have been computed."""
    found = [(letter, spec, trace_of(spec)) for letter, spec in zip(LETTERS, specs(), strict=False)]
    return [Shown(letter, spec, trace, name_of(spec.pipeline)) for letter, spec, trace in found if trace is not None]


def name_of(pipeline: str) -> str:
    """The name that the user gave a pipeline, by its text; "" where none."""
    return st.session_state.get("names", {}).get(pipeline, "")


def give_name(pipeline: str, name: str) -> None:
    st.session_state["names"] = {**st.session_state.get("names", {}), pipeline: name}


def trace_of(spec: RunSpec) -> Trace | None:
    """A spec's trace from the store, or from a job whose result could not be stored.

    None where it was never run, and where a link names files for which nobody here has pressed Run yet.
    """
    if not may_look_up(spec):
        return None
    unsaved = st.session_state.get("unsaved", {})
    key = key_of(spec)
    if key in unsaved:
        return unsaved[key]
    found = _recent().get(key)
    if found is None and (stored := Store().get(spec)) is not None:
        found = _recent().keep(key, stored)
    return found


@st.cache_resource(show_spinner=False)
def _recent() -> Recent[Trace]:
    """The traces that sessions looked at last."""
    recent: Recent[Trace] = Recent(_MOST_TRACE_BYTES, lambda trace: trace.n_bytes)
    keeps("traces looked at last", recent.n_bytes)
    return recent


def follow_address() -> str | None:
    """Takes the settings from the address, on a first visit and after Back or Forward.

    Returns the sentence of an address that could not be followed, until another is.
    """
    first = "specs" not in st.session_state
    if first:
        st.session_state.specs, st.session_state.view = [EXAMPLE], {}
    if first or came_by_history():
        try:
            _take(st.query_params)
            st.session_state.problem = None
        except ValueError as error:
            instead = "The bundled example is shown instead." if first else "The view before it is shown instead."
            st.session_state.problem = f"The link could not be followed. {explain(error)} {instead}"
    return st.session_state.get("problem")


def follow(parameters: Mapping[str, str]) -> None:
    """Takes the settings of a link that a file brought. Raises ValueError, as a sentence, where it asks for what cannot be."""
    _take(parameters)
    st.session_state.problem = None
    st.session_state.pop("followed", None)


def _take(parameters: Mapping[str, str]) -> None:
    asked = read_address(parameters)
    for spec in asked.specs:
        shared.check(spec)
        propose(places_of(spec.model, spec.pipeline))
    for spec, name in zip(asked.specs, asked.names, strict=False):
        give_name(spec.pipeline, name)
    if list(asked.specs) != specs():
        forget_settings()  # first: another Back may end this run of the script between any two lines
        st.session_state.specs = list(asked.specs)
    forget_view()
    st.session_state.pop("last_step", None)  # the link tells the step itself, whatever the length of the run before
    st.session_state.view = dict(asked.view)
    st.session_state.playing = False
    st.session_state["visit"] = (parameters.get("visit", ""), parameters.get("stop", "1"))
    st.session_state.pop("wanted_address", None)
    _forget_choices(parameters)


def visit_at() -> tuple[str, str]:
    """The guided example that the link names and its step, as the link has them; no name where there is none."""
    found: tuple[str, str] = st.session_state.get("visit", ("", ""))
    return found


def end_visit() -> None:
    st.session_state["visit"] = ("", "")


def open_run(*specs: RunSpec) -> None:
    """Shows another run, or several side by side, with their settings in the run bar, when the page runs again."""
    forget_settings()
    forget_view()
    st.session_state.specs = list(specs)


def forget_settings() -> None:
    """Lets the run bar show the settings of the runs on the page again."""
    _forget(_SETTINGS)
    forget_widgets(LETTERS)


def forget_widgets(letters: str) -> None:
    """Lets the run bar's widgets of these pipelines begin anew with what the pipelines' texts say."""
    _forget([str(key) for key in st.session_state if str(key)[1:2] == "_" and str(key)[0] in letters])


def forget_view() -> None:
    """Lets the view bar take another view. What its widgets hold in the browser until they are told so is remembered as stale."""
    stale = st.session_state.setdefault("stale", {})
    for name in VIEW:
        if name in st.session_state:
            stale[name] = {*stale.get(name, ()), st.session_state.pop(name)}


def _forget_choices(parameters: Mapping[str, str]) -> None:
    """Lets a page take from the address those of its own choices that the address names."""
    if "claim" in parameters:
        _forget(["claim"])
    if "weights" in parameters:
        _forget([str(key) for key in st.session_state if str(key).startswith("S_")])
        _forget(["spectra choice"])
    _forget([f"channels_{name}" for name in ("statistic", "r", "share") if name in parameters])


def _forget(keys: tuple[str, ...] | list[str]) -> None:
    for key in keys:
        st.session_state.pop(key, None)


def seen() -> View:
    """Where the page looks, as a figure's file tells it: with the run's command it brings the view back."""
    held = {name: st.session_state[name] for name in VIEW if name in st.session_state}
    return View(**held, page=st.session_state.get("page", ""))


def keep_address(also: Mapping[str, str]) -> None:
    """Makes the browser's address the one that brings back the run asked for last and the view, beside a page's own part.

    A replay writes none: its many steps are one choice. Nor does a run of the script before the browser has painted a page.
    """
    if not painted() or st.session_state.get("playing"):
        return
    wanted = st.session_state.get("wanted_address")
    view = {name: st.session_state[name] for name in VIEW if name in st.session_state}
    if wanted and "run" in st.session_state.get("pending", {}):
        same = (wanted[0].model, wanted[0].prompt) == (specs()[0].model, specs()[0].prompt)
        link = _address_of(wanted, view if same else {})
    else:
        link = _address_of(specs(), st.session_state.view | view)
    st.session_state["link of the page"] = dict(also)
    name, stop = visit_at()
    link |= {**also, **({"visit": name, "stop": stop} if name else {})}
    if dict(st.query_params) != link:
        st.query_params.from_dict(link)


def link_of_view() -> dict[str, str]:
    """What a figure's file holds to bring this view back: the address, with its page and the prompt's own text."""
    view = {name: st.session_state[name] for name in VIEW if name in st.session_state}
    link = _address_of(specs(), st.session_state.view | view) | st.session_state.get("link of the page", {})
    if link.get("prompt", "").startswith("long-") and len(specs()[0].prompt) <= _MOST_LETTERS_IN_A_FILE:
        link = {**{name: value for name, value in link.items() if name != "prompt"}, "text": specs()[0].prompt}
    return {"page": st.session_state.get("page", ""), **link}


def _address_of(wanted: list[RunSpec], view: Mapping[str, str]) -> dict[str, str]:
    return write_address(wanted, view, [name_of(spec.pipeline) for spec in wanted])
