"""Which files a session may look at: those that a link names only once this visitor pressed Run."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from sparsity_core.record import RunSpec
from ui.address import places_of


def propose(places: Iterable[str]) -> None:
    """Remembers places that a link named: they wait for Run."""
    _session("proposed").update(set(places) - _session("trusted"))


def trust(places: Iterable[str]) -> None:
    """This visitor pressed Run for these places."""
    _session("trusted").update(places)
    _session("proposed").difference_update(places)


def may_touch(places: Iterable[str]) -> bool:
    """Whether these places may be looked at: no link named them, or this visitor pressed Run since."""
    return not set(places) & _session("proposed")


def may_look_up(spec: RunSpec) -> bool:
    """Whether a run's result may be looked for, which reads the state of a local model's files."""
    return may_touch(places_of(spec.model, spec.pipeline))


def _session(name: str) -> set[str]:
    found: set[str] = st.session_state.setdefault(f"{name} places", set())
    return found
