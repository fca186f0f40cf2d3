"""Which files a session may look at: those that a link names only once somebody here pressed Run."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from sparsity_core.record import RunSpec
from ui.address import places_of


@st.cache_resource(show_spinner=False)
def _opened() -> set[str]:
    """Models and files that somebody ran in this process."""
    return set()


def propose(places: Iterable[str]) -> None:
    """Remembers places that a link named: they wait for Run."""
    st.session_state.setdefault("proposed", set()).update(places)


def trust(places: Iterable[str]) -> None:
    """Run was pressed for these places, so everybody here may look at them."""
    _opened().update(places)


def may_touch(places: Iterable[str]) -> bool:
    """Whether these places may be looked at: a visitor named them here, or somebody ran them."""
    return not (set(places) & st.session_state.get("proposed", set())) - _opened()


def may_look_up(spec: RunSpec) -> bool:
    """Whether a run's result may be looked for, which reads the state of a local model's files."""
    return may_touch(places_of(spec.model, spec.pipeline))
