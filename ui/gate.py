"""The Gate page's work: a layer's gate logits, the family's curve on this prompt, and training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import GateMethod, Pipeline
from sparsity_core.methods.gate.dcp.records import Training, family, recipe_of
from sparsity_core.record import RunSpec, key_of
from sparsity_core.studies import GateLook
from sparsity_core.work import cache_dir
from ui import work
from ui.session import Shown, trace_of
from viz.gate import point_of

_KEPT = 12  # looks at a layer, in this process
_THRESHOLDS = (0.0, 0.4, 0.8)
_SHARES = (0.75, 0.5, 0.35, 0.25)  # of the prompt, that the eviction methods of the curve keep
_EVICTING = ("local_window", "streaming_llm", "h2o", "a2sf")


def gate_of(item: Shown) -> GateMethod | None:
    return Pipeline.parse(item.spec.pipeline).gate


def recipe_used(method: GateMethod) -> dict[str, Any] | None:
    """How the gate that a method uses was trained."""
    adapter, gamma = getattr(method, "adapter", "auto"), getattr(method, "gamma", 0.0)
    if adapter != "auto":
        return recipe_of(Path(adapter).expanduser())
    shipped = family()
    return recipe_of(shipped[min(shipped, key=lambda known: abs(known - gamma))]) if shipped else None


# --- a layer's gate logits ---


def look_of(item: Shown, layer: int, window: tuple[int, int]) -> GateLook | None:
    return known_values().get(_look_key(item, layer, window))


def was_asked(item: Shown, layer: int, window: tuple[int, int]) -> bool:
    """Whether this look was begun by itself before: one that failed or was cancelled waits for a button."""
    return st.session_state.get("gate look") == _look_key(item, layer, window)


def look_at(item: Shown, layer: int, window: tuple[int, int]) -> None:
    key = _look_key(item, layer, window)
    st.session_state["gate look"] = key
    work.submit("gate_look", {key: partial(_look, item, layer, window, key, known_values())})


def _look_key(item: Shown, layer: int, window: tuple[int, int]) -> str:
    return f"gate {key_of(item.spec)} {layer} {window}"


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Looks of this process, the last ones."""
    return {}


def _look(
    item: Shown,
    layer: int,
    window: tuple[int, int],
    key: str,
    known: dict[str, Any],
    progress: Callable[[float, str], None],
) -> None:
    from sparsity_core.models import load
    from sparsity_core.studies import look_at_gate

    spec = item.spec
    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    known[key] = look_at_gate(model, item.trace, Pipeline.parse(spec.pipeline), layer, window, progress)
    while len(known) > _KEPT:
        known.pop(next(iter(known)))


# --- the family's curve ---


def family_specs(item: Shown) -> dict[tuple[str, str], RunSpec]:
    """Runs of this prompt: every shipped γ at some thresholds, and eviction methods at some budgets."""
    own = gate_of(item)
    gates = {f"gamma={gamma:g}": {"gamma": gamma} for gamma in family()}
    if own is not None and getattr(own, "adapter", "auto") != "auto":
        gates = {"own": {"adapter": getattr(own, "adapter")}}  # noqa: B009 -- a gate method need not have one
    found = {
        ("dcp", f"{name}, threshold={threshold:g}"): _with(item, gate=methods.DCP(**knobs, threshold=threshold))
        for name, knobs in gates.items()
        for threshold in _THRESHOLDS
    }
    for name in _EVICTING:
        for share in _SHARES:
            budget = max(8, round(share * item.trace.n_prompt))
            method = methods.get(name)(budget=budget)  # type: ignore[call-arg]
            found[(name, f"budget={budget}")] = _with(item, eviction=method)
    return found


def _with(item: Shown, **stages: Any) -> RunSpec:
    weights = Pipeline.parse(item.spec.pipeline).weights
    return replace(item.spec, generate=0, pipeline=str(Pipeline(weights=weights, **stages)))


def points_of(specs: dict[tuple[str, str], RunSpec]) -> dict[tuple[str, str], dict[str, float]]:
    found = {}
    for name, spec in specs.items():
        try:
            found[name] = _point(key_of(spec), spec)
        except LookupError:
            continue
    return found


@st.cache_resource(show_spinner=False, max_entries=512)
def _point(key: str, _spec: RunSpec) -> dict[str, float]:
    trace = trace_of(_spec)
    if trace is None:
        raise LookupError(key)
    return point_of(trace)


# --- training ---


def training_place(spec: RunSpec, training: Training, text: str | None) -> Path:
    """Where a gate that is trained here is kept: equal settings find the same file, and an unfinished training."""
    asked = [spec.model, spec.device, spec.dtype, asdict(training), text]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    return cache_dir() / "gates" / f"dcp-{training.gamma:g}-{name}.safetensors"


def train(spec: RunSpec, training: Training, text: str | None) -> None:
    place = training_place(spec, training, text)
    work.submit("train_gate", {str(place): partial(_train, spec, training, text, place, _live_curve(place))})


@st.cache_resource(show_spinner=False, max_entries=8)
def _live_curve(place: Path) -> dict[str, Any]:
    """The curve of a training as far as it has come, shared between the job and the pages that watch it."""
    return {"loss": [], "kept": []}


def curve_of(place: Path) -> dict[str, Any]:
    """Loss and kept of every step of a training, finished or as far as it has come."""
    recipe = recipe_of(place)
    return _live_curve(place) if recipe is None else dict(recipe["curve"])


def _train(
    spec: RunSpec,
    training: Training,
    text: str | None,
    place: Path,
    curve: dict[str, Any],
    progress: Callable[[float, str], None],
) -> None:
    from sparsity_core.methods.gate.dcp.training import train_gate
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)

    def seen(loss: list[float], kept: list[float]) -> None:
        curve.update(loss=list(loss), kept=list(kept))

    found, _ = train_gate(
        model, training, text=text, checkpoint=place.with_suffix(".part"), progress=progress, on_step=seen
    )
    found.save(place)
    place.with_suffix(".part").unlink(missing_ok=True)
