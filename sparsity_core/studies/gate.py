"""What a gate thinks of each pair of tokens in one layer, on demand: T × T numbers of a window, never of all layers."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from sparsity_core.inference import gate_stage, replaying
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Attends, AttentionCall, Enough, Model, attention_input, recording
from sparsity_core.record import Trace
from sparsity_core.studies.gate_look import GateLook
from sparsity_core.work import Progress, silent


class _Peek:
    """Follows another recorder up to a layer, and keeps what that layer's attention reads."""

    def __init__(self, recorder: Attends, layer: int) -> None:
        self.recorder, self.layer = recorder, layer
        self.hidden: torch.Tensor | None = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if call.layer == self.layer:
            self.hidden = attention_input(call.layer)
            raise Enough
        return self.recorder.attend(call)


@torch.inference_mode()
def look_at_gate(
    model: Model, trace: Trace, pipeline: Pipeline, layer: int, window: tuple[int, int], progress: Progress = silent
) -> GateLook:
    """The gate logits of a layer among the tokens of a window, as they were in the run of `trace`.

    Raises ValueError for a pipeline without a gate, and whatever `progress` raises to cancel.
    """
    if pipeline.gate is None:
        raise ValueError("this pipeline has no gate to look at")
    stage, recorder = gate_stage(model, pipeline), replaying(model, trace, pipeline, progress)
    assert stage is not None
    peek = _Peek(recorder, layer)
    with recording(peek), contextlib.suppress(Enough):
        recorder.model.hidden(torch.from_numpy(trace.token_ids.astype(np.int64))[None], use_cache=False)
    assert peek.hidden is not None
    gate, (start, end) = stage.gate, window
    gate_q, gate_k = gate.project(layer, peek.hidden[:, start:end])
    x = (gate_q @ gate_k.mT)[0].float() + float(gate.bias[layer]) - stage.threshold
    return GateLook(layer, start, x.cpu().numpy())
