"""A run's decisions made again, for scores at more steps than a trace keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from sparsity_core.attention import Recorder
from sparsity_core.inference.stages import recorder_for
from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Enough, Model, recording
from sparsity_core.record import Trace
from sparsity_core.work import Progress, silent


@torch.inference_mode()
def refill(
    model: Model, trace: Trace, pipeline: Pipeline, layer: int, *, steps: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One layer's accumulated scores at more steps than a trace keeps: (steps [S], scores [Hkv, S, T]).

    Runs the layers up to this one again over the trace's tokens. Every step where None, up to 512 of them.
    """
    n = trace.n_tokens
    wanted = list(steps) if steps is not None else sorted(set(np.linspace(0, n - 1, min(n, 512)).round().astype(int)))
    recorder = replaying(model, trace, pipeline, snapshot_steps=[int(s) for s in wanted], only_layer=layer)
    with recording(recorder), contextlib.suppress(Enough):
        recorder.model.hidden(torch.from_numpy(trace.token_ids.astype(np.int64))[None], use_cache=False)
    return np.asarray(wanted, np.int32), recorder.stages.eviction.layer_snapshots(layer)


def replaying(
    model: Model,
    trace: Trace,
    pipeline: Pipeline,
    progress: Progress = silent,
    *,
    snapshot_steps: Sequence[int] = (),
    only_layer: int | None = None,
) -> Recorder:
    """A recorder that decides over a trace's tokens as its run did; its own model has the weights pruned."""
    n_layers = model.arch.n_layers
    return recorder_for(
        model,
        pipeline,
        Words(
            trace.token_ids.tolist(),
            trace.texts[: trace.n_at_once],
            trace.groups[: trace.n_at_once].tolist(),
            trace.classes,
        ),
        n_tokens=trace.n_tokens,
        n_prefill=trace.n_prefill,
        first=trace.n_at_once if trace.continuation else 0,
        snapshot_steps=snapshot_steps,
        seed=trace.provenance.seed or 0,
        only_layer=only_layer,
        on_layer=lambda i: progress(i / n_layers, f"layer {i + 1}"),
    )
