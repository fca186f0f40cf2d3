"""A prompt as a strip of tokens that shows which are kept and which are dropped, and tells which one was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import streamlit as st

State = Literal["kept", "dropped", "gated", "hidden", "unread", "sink", "recent", "future"]
_STATES: tuple[State, ...] = get_args(State)
_TOLD = {
    "dropped": "evicted, for good",
    "gated": "dropped by the gate, for good",
    "hidden": "not shown to this query by the prefill stage",
    "unread": "cached, but not read by this query",
}


@dataclass(frozen=True)
class TokenCell:
    """One token as the strip draws it.

    `index` is its position in the prompt; `text` has its newlines, tabs, control and direction characters made visible
    already (a line breaks after "↵"); `note` says more than the state ("dropped at step 40 by token 39; score 0.031");
    neighbours of equal `group` are pieces of one character; `contested`: another pipeline decides differently; `paired`: it
    dropped the selected token, or was dropped by it.
    """

    index: int
    text: str
    state: State
    note: str
    group: int
    contested: bool
    paired: bool = False

    def __post_init__(self) -> None:
        if self.state not in _STATES:
            raise ValueError(f"token {self.index} has state {self.state!r}; allowed are {', '.join(_STATES)}")


def token_strip(tokens: Sequence[TokenCell], *, selected: int | None, key: str, label: str) -> int | None:
    """Draw the tokens, `selected` outlined, and return the index that was clicked in this very rerun, else None.

    The strip remembers no click: what is outlined is always `selected`. So store the click and run again:

        clicked = token_strip(cells, selected=st.session_state.token, key="strip_a", label="Tokens")
        if clicked is not None and clicked != st.session_state.token:
            st.session_state.token = clicked
            st.rerun()

    `key` is unique on the page and has no double underscore (Streamlit's own separator); `label` is shown above.
    A `selected` that is not among the tokens outlines nothing. Does not work inside `st.form`, which drops triggers.
    Raises ValueError for such a key and for two tokens of one index.
    """
    if "__" in key:
        raise ValueError(f"key is {key!r}; Streamlit allows no double underscore in it: use single ones")
    index = [token.index for token in tokens]
    if len(set(index)) < len(index):
        twice = next(i for i in index if index.count(i) > 1)
        raise ValueError(f"token index {twice} appears more than once; give each token its position in the prompt")
    data = {
        "label": label,
        "selected": selected,
        "index": index,
        "text": [token.text for token in tokens],
        "group": [token.group for token in tokens],
        "state": [token.state for token in tokens],
        "note": [token.note for token in tokens],
        "contested": [token.contested for token in tokens],
        "paired": [token.paired for token in tokens],
    }
    # Without a callback the result has no `clicked`. A click on a token that has gone since is nobody's click.
    clicked = _component(key=key, data=data, on_clicked_change=lambda: None).clicked
    return clicked if clicked in index else None


_HTML = f"""
<div class="strip">
  <div class="head">
    <span class="label" id="label"></span>
    <span class="legend">
      {"".join(f'<span class="cell {state}" title="{_TOLD.get(state, "")}">{state}</span>' for state in _STATES)}
      <span class="cell kept contested">contested</span>
      <span class="cell kept paired">paired</span>
    </span>
  </div>
  <div class="list" role="listbox" aria-orientation="horizontal" aria-labelledby="label"></div>
  <div class="tip" popover="manual" aria-hidden="true"><b></b> <bdi></bdi><span></span></div>
</div>
"""

_component = st.components.v2.component(
    "sparselens_token_strip",
    html=_HTML,
    css=Path(__file__).with_suffix(".css").read_text(encoding="utf-8"),
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)
