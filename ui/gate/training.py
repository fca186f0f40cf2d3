"""The training of a gate on a page, and how far it has come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core.methods.gate.dcp.records import Training, recipe_of
from sparsity_core.record import RunSpec
from sparsity_core.work import cache_dir
from ui import work


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
