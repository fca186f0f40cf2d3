"""How each method would rank the cached keys at one step, had nothing been dropped before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from sparselens_kernels import flash_column_score

from sparsity_core import methods
from sparsity_core.inference import gate_stage, run
from sparsity_core.kinds import EvictionMethod, GateMethod, Pipeline, ReadingMethod, Selector
from sparsity_core.models import AttentionCall, Model, attention_input, recording
from sparsity_core.work import Progress, silent


def all_judges() -> list[str]:
    """Every method that may have scores, as a pipeline with its own settings."""
    kinds = (EvictionMethod, GateMethod, ReadingMethod)
    found = (methods.get(name) for name in methods.names())
    return [str(Pipeline.parse(f"{cls.stage}={cls.name}")) for cls in found if issubclass(cls, kinds)]


def scores_of(model: Model, ids: Sequence[int], judge: str, progress: Progress = silent) -> np.ndarray:
    """float32 [L, Hkv or 1, T]: how a pipeline's one method judges the T keys after the last query; the lowest go first.

    An eviction method has room for all keys but one, so that this is its first decision, and the key that it drops is nan.
    A gate's score of a key is the smallest of its logits from the later tokens. A decode method's are the last query's.

    Raises ValueError for a pipeline of another stage or of several, and for a method that judges by position alone.
    """
    (method,) = Pipeline.parse(judge).methods.values() or (None,)
    if isinstance(method, EvictionMethod):
        return _evicting(model, ids, method)
    if isinstance(method, GateMethod):
        return _gating(model, ids, judge, progress)
    if isinstance(method, ReadingMethod):
        return _reading(model, ids, method, progress)
    raise ValueError(f"a judge is one method that evicts, gates or selects what is read; got {judge}")


def attention_to_come(model: Model, ids: Sequence[int], step: int) -> np.ndarray:
    """float32 [L, Hkv, step + 1]: the dense attention that each key gets from the queries after the step."""
    with torch.inference_mode(), recording(later := _Later(step)):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)
    return np.stack(later.found)


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """float32 [L, T] of scores [L, heads, T]: each key's rank in its head from 0, the first to go, to 1; the heads' mean."""
    from scipy.stats import rankdata

    lowest = np.where(np.isnan(scores), -np.inf, scores)
    ranks = (rankdata(lowest, axis=-1) - 1) / max(1, scores.shape[-1] - 1)
    return ranks.mean(1).astype(np.float32)


def _evicting(model: Model, ids: Sequence[int], method: EvictionMethod) -> np.ndarray:
    if "budget" not in {field.name for field in fields(method)}:
        raise ValueError(f"{method.name} has no budget to decide by")
    by_one: dict[str, Any] = {"every": 1} if getattr(method, "every", 0) else {}  # else more go
    pipeline = Pipeline(eviction=replace(method, budget=len(ids) - 1, **by_one))
    trace = run(model, list(ids), pipeline, n_prefill=len(ids), snapshots=1, against_dense=False)
    scores: np.ndarray = trace.snapshots[:, :, -1].astype(np.float32)
    if np.nanmin(scores) == np.nanmax(scores):
        raise ValueError("it decides by position alone")
    return scores


def _gating(model: Model, ids: Sequence[int], judge: str, progress: Progress) -> np.ndarray:
    stage = gate_stage(model, Pipeline.parse(judge))
    assert stage is not None
    gate, found = stage.gate, []

    def look(call: AttentionCall) -> None:
        progress(call.layer / model.arch.n_layers, f"layer {call.layer + 1} of {model.arch.n_layers}")
        gate_q, gate_k = gate.project(call.layer, attention_input(call.layer))
        x = (gate_q @ gate_k.mT)[0].float() + float(gate.bias[call.layer])
        later = torch.ones_like(x, dtype=torch.bool).tril(-1)
        found.append(x.masked_fill(~later, float("inf")).amin(0)[None].cpu().numpy())

    _follow(model, ids, look)
    return np.stack(found)


def _reading(model: Model, ids: Sequence[int], method: ReadingMethod, progress: Progress) -> np.ndarray:
    make, found = method.selectors(model, progress), []

    def look(call: AttentionCall) -> None:
        selector: Selector = make(call.layer)
        selector.append(call.k)
        scores = selector.scores(call.q[:, :, -1:], call.k, scale=call.scale)
        found.append(scores[0, :, :, -1].mean(1).float().cpu().numpy())

    _follow(model, ids, look)
    return np.stack(found)


def _follow(model: Model, ids: Sequence[int], look: Callable[[AttentionCall], None]) -> None:
    with torch.inference_mode(), recording(_Looking(look)):
        model.hidden(torch.tensor([list(ids)]), use_cache=False)


class _Looking:
    """A recorder of the dense pass that shows each layer's call."""

    def __init__(self, look: Callable[[AttentionCall], None]) -> None:
        self._look = look

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self._look(call)
        return flash_column_score(call.q, call.k, call.v, **call.how).out


class _Later:
    """A recorder of the dense pass that adds up the attention of the queries after a step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.found: list[np.ndarray] = []

    def attend(self, call: AttentionCall) -> torch.Tensor:
        result = flash_column_score(call.q, call.k, call.v, first_query=self._step + 1, **call.how)
        self.found.append(result.score[0, :, : self._step + 1].float().cpu().numpy())
        return result.out
