"""The training of a gate, and the look at one layer's logits."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from sparsity_core.kinds import Pipeline
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.record import RunSpec, Trace
from sparsity_core.studies import GateLook
from sparsity_core.work import Progress, write_whole

PART, CURVE = ".part", ".curve"  # of a training that goes on: what it resumes from, and its curve as JSON


def train(spec: RunSpec, training: Training, text: str | None, place: Path, progress: Progress) -> None:
    """Trains a gate, keeps it at `place`, and beside it the curve as far as it has come."""
    from sparsity_core.methods.gate.dcp.training import train_gate
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)

    def seen(loss: list[float], kept: list[float]) -> None:
        with contextlib.suppress(OSError):  # a disk that refuses it costs the sight of the curve, not the training
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place.with_suffix(CURVE), json.dumps({"loss": loss, "kept": kept}).encode())

    found, _ = train_gate(
        model, training, text=text, checkpoint=place.with_suffix(PART), progress=progress, on_step=seen
    )
    found.save(place)
    for suffix in (PART, CURVE):
        place.with_suffix(suffix).unlink(missing_ok=True)


def look(spec: RunSpec, trace: Trace, layer: int, window: tuple[int, int], progress: Progress) -> GateLook:
    from sparsity_core.models import load
    from sparsity_core.studies import look_at_gate

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return look_at_gate(model, trace, Pipeline.parse(spec.pipeline), layer, window, progress)
