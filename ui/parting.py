"""Where a pipeline's text leaves another's: the token marked, and a button to the step at which it was chosen."""

from __future__ import annotations

import streamlit as st

from sparsity_core.record import Trace
from ui.literal import code, literal
from ui.session import Shown
from ui.view import go
from viz import compare as viz


def show_parting(item: Shown, other: Trace, name: str, lead: str = "") -> int | None:
    """What a run wrote, after `lead`, against what `other`, called `name`, wrote. Returns the step that chose the first other
    token."""
    parting = viz.parting_of(item.trace, other)
    if parting is None:
        same = item.trace.continuation == other.continuation
        st.markdown(lead + inline(item.trace.continuation))
        st.caption(f"wrote the same as {name}" if same else f"agrees with {name} as far as both wrote")
        return None
    st.markdown(f"{lead}{inline(parting.before)} :red-background[{inline(parting.token)}] {inline(parting.after)}")
    step = parting.position - 1
    gone = float((item.trace.evicted_at[:, :, : parting.position] <= step).mean())
    st.caption(
        f"First other token: {parting.position}, {code(parting.token)} in place of {code(parting.instead_of)}. When it was "
        f"chosen, at step {step}, {gone:.0%} of the keys of all layers and heads were gone."
    )
    return step


def go_to(step: int, key: str) -> None:
    """A button that moves all pages to a step."""
    if st.button(f"Go to step {step}", key=key, icon=":material/my_location:"):
        go(step=step)


def inline(text: str) -> str:
    """Text inside a line of Markdown, inert and with its line ends shown."""
    return literal(" ".join(text.replace("\n", " ↵ ").split())).replace(":", "\\:")
