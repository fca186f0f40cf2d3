"""The calibration, the study of a text and the look at one layer that the Channels page draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec
from sparsity_core.studies import ChannelStudy, Read
from sparsity_core.work import Progress


def calibrate(spec: RunSpec, progress: Progress) -> None:
    """Calibrates the model of a spec, and keeps what was found on disk."""
    from sparsity_core.methods.decode.double_sparsity.calibration import channels_for

    channels_for(_model(replace(spec, pipeline="dense"), progress), progress=progress)


def study(spec: RunSpec, ids: tuple[int, ...], progress: Progress) -> ChannelStudy:
    from sparsity_core.studies import study_channels

    return study_channels(_model(spec, progress), ids, progress=progress)


def look(spec: RunSpec, ids: tuple[int, ...], layer: int, channels: int, statistic: str, progress: Progress) -> Read:
    from sparsity_core.studies import read_at

    model = _model(spec, progress)
    return read_at(model, ids, layer, channels=channels, statistic=statistic, progress=progress)


def _model(spec: RunSpec, progress: Progress) -> Any:
    """The model of a spec, its weights pruned as the spec says."""
    from sparsity_core.inference import pruned
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    return pruned(load(spec.model, device=spec.device, dtype=spec.dtype), Pipeline.parse(spec.pipeline), progress)
