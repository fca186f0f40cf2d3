"""A layer's gate logits, computed on demand, and how a gate was trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.kinds import GateMethod, Pipeline
from sparsity_core.record import key_of
from sparsity_core.studies import GateLook
from ui import work
from ui.session import Shown
from ui.tasks import gate

_KEPT = 12  # looks at a layer, in this process


def gate_of(item: Shown) -> GateMethod | None:
    return Pipeline.parse(item.spec.pipeline).gate


def recipe_used(method: GateMethod) -> dict[str, Any] | None:
    """How the gate that a method uses was trained."""
    return method.recipe()


def look_of(item: Shown, layer: int, window: tuple[int, int]) -> GateLook | None:
    return known_values().get(_look_key(item, layer, window))


def was_asked(item: Shown, layer: int, window: tuple[int, int]) -> bool:
    """Whether the page has begun this look on its own before: one that failed or was cancelled waits for a button."""
    return st.session_state.get("gate look") == _look_key(item, layer, window)


def look_at(item: Shown, layer: int, window: tuple[int, int]) -> None:
    key = _look_key(item, layer, window)
    st.session_state["gate look"] = key
    work.submit(
        "gate_look", {key: partial(gate.look, item.spec, item.trace, layer, window)}, partial(_keep, known_values())
    )


def _look_key(item: Shown, layer: int, window: tuple[int, int]) -> str:
    return f"gate {key_of(item.spec)} {layer} {window}"


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Looks of this process, the last ones."""
    return {}


def _keep(known: dict[str, Any], key: str, found: GateLook) -> None:
    known[key] = found
    while len(known) > _KEPT:
        known.pop(next(iter(known)))
