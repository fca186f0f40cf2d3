"""Where several pipelines stand on a page: two in a row, since more are too narrow to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui.session import Shown

_IN_A_ROW = 2


def side_by_side(shown: Sequence[Shown]) -> Iterator[tuple[DeltaGenerator, Shown]]:
    """Each pipeline with the column that it is drawn in."""
    width = min(len(shown), _IN_A_ROW)
    for start in range(0, len(shown), width):
        yield from zip(st.columns(width), shown[start : start + width], strict=False)
