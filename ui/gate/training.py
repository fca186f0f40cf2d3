"""The training of a gate on a page, and how far it has come."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sparsity_core.methods.gate.dcp.records import Training, recipe_of
from sparsity_core.record import RunSpec
from sparsity_core.work import cache_dir
from ui import work
from ui.tasks import gate


def training_place(spec: RunSpec, training: Training, text: str | None) -> Path:
    """Where a gate that is trained here is kept: equal settings find the same file, and an unfinished training."""
    asked = [spec.model, spec.device, spec.dtype, asdict(training), text]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    return cache_dir() / "gates" / f"dcp-{training.gamma:g}-{name}.safetensors"


def train(spec: RunSpec, training: Training, text: str | None) -> None:
    place = training_place(spec, training, text)
    work.submit("train_gate", {str(place): partial(gate.train, spec, training, text, place)})


def curve_of(place: Path) -> dict[str, Any]:
    """Loss and kept of every step of a training, finished or as far as it has come."""
    recipe = recipe_of(place)
    if recipe is not None:
        return dict(recipe["curve"])
    try:
        return dict(json.loads(place.with_suffix(gate.CURVE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {"loss": [], "kept": []}
