"""The dense attention of a layer, computed on demand and kept for this process."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.record import key_of
from sparsity_core.studies import AttentionLook
from sparsity_core.work import Job
from ui import work
from ui.session import Shown
from ui.tasks import patterns

_KEPT = 32  # looks at a layer
_AT_ONCE = 2048  # tokens whose attention is looked at without being asked


def block_of(shown: list[Shown]) -> int:
    """The tokens of a block: as a prefill stage's record has them, or as one would."""
    recorded = [item.trace.prefill.block for item in shown if item.trace.prefill is not None]
    return recorded[0] if recorded else max(16, -(-shown[0].trace.n_at_once // 128))


def look_of(item: Shown, layer: int, block: int) -> AttentionLook | None:
    return _known().get(key_of_look(item, layer, block))


def watch_look(item: Shown, layer: int, block: int) -> AttentionLook | None:
    """The look, once it is there: begun by itself for a short text, by a button for a long one. Shows its progress."""
    found, key = look_of(item, layer, block), key_of_look(item, layer, block)
    if found is None and not work.pending("attention_look"):
        first = item.trace.n_at_once <= _AT_ONCE and st.session_state.get("attention look") != key
        label = f"Look at the dense attention of layer {layer}"
        if first or st.button(label, key="look_at_attention", icon=":material/search:"):
            st.session_state["attention look"] = key
            ids = tuple(item.trace.token_ids[: item.trace.n_at_once].tolist())
            work.submit(
                "attention_look",
                {key: partial(patterns.look, item.spec, ids, layer, block)},
            )
            st.rerun()
    work.watch("attention_look", _keep)
    return found


def key_of_look(item: Shown, layer: int, block: int) -> str:
    """The name of its job, and of what the session began last (`attention look`)."""
    return f"attention {key_of(item.spec)} {layer} {block}"


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, Any]:
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known = _known()
    known.update({key: job.result for key, job in jobs.items()})
    while len(known) > _KEPT:
        known.pop(next(iter(known)))
