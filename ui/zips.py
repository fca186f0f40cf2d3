"""Whose zips lie in the cache: on a shared server, the last two of each visitor."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ui import shared
from ui.compat import is_connected, session_id

_MOST = 2


@st.cache_resource(show_spinner=False)
def _holders() -> dict[Path, set[str]]:
    """The sessions that made each zip; equal models are one file."""
    return {}


def hold(path: Path) -> None:
    """Counts a zip as this visitor's."""
    st.session_state.zips = held(path, st.session_state.get("zips", []), session_id())


def held(path: Path, before: list[Path], who: str) -> list[Path]:
    """The zips of a session after one more. On a shared server those before the last two go, unless another session has them."""
    zips = [place for place in before if place != path] + [path]
    _holders().setdefault(path, set()).add(who)
    if not shared.is_shared():
        return zips
    for place in zips[:-_MOST]:
        others = _holders().pop(place, set()) - {who}
        if any(is_connected(other) for other in others):
            _holders()[place] = others
        else:
            place.unlink(missing_ok=True)
    return zips[-_MOST:]
