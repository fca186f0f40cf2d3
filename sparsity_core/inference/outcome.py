"""What a pass under a pipeline left behind, as a Trace: first what the recorder tells, then the losses."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparsity_core.attention import AgainstDense, Reading, Recorder, cuts_once, probe_steps
from sparsity_core.kinds import EvictionMethod, Pipeline
from sparsity_core.models import Model, log_total, picked, recording, shown
from sparsity_core.record import Provenance, Trace
from sparsity_core.work import Progress


def draft(
    recorder: Recorder,
    pipeline: Pipeline,
    reference: Model,
    ids: Sequence[int],
    texts: list[str],
    groups: list[int],
    classes: list[str],
    *,
    n_prompt: int,
    seed: int,
) -> Trace:
    """The trace as far as the pruned pass alone tells it. `reference` is the model that the pipeline started from."""
    n, model, rules = len(ids), recorder.model, recorder.rules
    evicted_at = recorder.evicted_at(n)
    steps = [s for s in recorder.snapshot_steps if s < n]
    nothing, none = np.full(n, np.nan, np.float32), np.zeros((0, 0, 0), np.float32)
    return Trace(
        provenance=Provenance(
            model=reference.name,
            fingerprint=reference.fingerprint,  # the pipeline's own text says how its weights were cut
            pipeline=str(pipeline),
            seed=seed,
            dtype=model.dtype_name,
            device=str(model.device),
            backends=tuple(sorted(recorder.backends)),
            prompt_hash=hashlib.sha256(np.asarray(ids[:n_prompt], np.int64).tobytes()).hexdigest()[:12],
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
            seconds={},
        ),
        n_prompt=n_prompt,
        n_prefill=recorder.n_prefill if cuts_once(rules) else 0,
        n_heads=model.arch.n_heads,
        budgets=np.asarray([n if rule.budget is None else rule.budget for rule in rules], np.int32),
        n_sink=np.asarray([rule.n_sink for rule in rules], np.int32),
        recent=np.asarray([rule.recent for rule in rules], np.int32),
        token_ids=np.asarray(ids, np.int32),
        texts=texts,
        tokens=shown(texts, groups),
        groups=np.asarray(groups, np.int32),
        classes=classes,
        evicted_at=evicted_at,
        threshold=recorder.threshold(n),
        snapshot_steps=np.asarray(steps, np.int32),
        snapshots=recorder.snapshots(n)[:, :, : len(steps)],
        nll=nothing,
        dense_nll=nothing,
        kl_to_dense=nothing,
        top1_agrees=nothing,
        regret=none,
        probe_steps=probe_steps(n),
        ideal_recall=none,
        ideal_cosine=none,
        ideal_mass=none,
        kv_bytes=0,
        kv_bytes_dense=0,
        continuation="",
        notes=tuple(_notes(recorder, pipeline, evicted_at)),
        gated_at=recorder.gated_at(n),
        protected=recorder.protected(n),
        **_selections(recorder.reading, n),
    )


def _notes(recorder: Recorder, pipeline: Pipeline, evicted_at: np.ndarray) -> list[str]:
    """What a reader of the trace should know: why nothing was dropped, and which gate ran for another."""
    n, method = evicted_at.shape[2], pipeline.eviction
    notes = []
    if pipeline.gate is not None and method is None and not (evicted_at < n).any():
        notes.append("Nothing was dropped: the gate keeps all of this text. Raise its threshold, or use a larger γ.")
    elif method is not None and not (evicted_at < n).any():
        notes.append(_why_nothing(method, recorder, n))
    note = "" if pipeline.gate is None or recorder.gate is None else pipeline.gate.note(recorder.gate)
    return [*notes, note] if note else notes


def _why_nothing(method: EvictionMethod, recorder: Recorder, n: int) -> str:
    """Why no query of a text of n tokens missed a key, and what to do about it."""
    arch, n_prefill = recorder.model.arch, recorder.n_prefill
    if all(rule.budget is None for rule in recorder.rules):
        return "Nothing was dropped: every layer is left dense. Lower dense_layers."
    if recorder.n_cached() < arch.n_layers * arch.n_kv_heads * n:
        return "The text ends where the budget is first passed, so no query missed what was dropped. Choose a smaller budget."
    advice = "Choose a smaller budget." if min(n, method.budget) > 1 else "Read a longer text."
    if cuts_once(recorder.rules) and n_prefill < n:
        return (
            f"Nothing was dropped: the cut comes after the first {n_prefill} tokens, and the budget is {method.budget}. "
            + advice
        )
    return f"Nothing was dropped: the text has {n} {'token' if n == 1 else 'tokens'} and the budget is {method.budget}. {advice}"


def _selections(reading: Reading | None, n: int) -> dict[str, Any]:
    """What the decode stage read, as the trace's fields; nothing where there is none."""
    if reading is None:
        return {}
    layers = [reading.selected[i] for i in sorted(reading.selected)]
    read = {"selected": [s.count for s in layers], "selected_mass": [s.mass for s in layers]}
    read["selected_recall"] = [s.recall for s in layers]
    steps, drift = reading.drift()
    channels = {"drift_steps": steps, "drift": drift} if len(steps) else {}
    return {name: torch.stack(values)[..., :n].numpy() for name, values in read.items()} | channels


def complete(
    model: Model,
    draft: Trace,
    hidden: torch.Tensor,
    reference: Model | None,
    began: float,
    forward_seconds: float,
    share: float,
    progress: Progress,
) -> Trace:
    """Adds the loss of the pruned pass and, with a dense pass, what the pruning cost.

    Eviction is held against the same weights without eviction, the losses against the reference, whose weights are whole.
    """
    ids = torch.from_numpy(draft.token_ids.astype(np.int64))
    seconds = {"forward": round(forward_seconds, 3)}
    found: dict[str, Any] = {}
    if reference is not None:
        dense = AgainstDense(
            draft.evicted_at,
            draft.n_heads,
            lambda i: progress(share + (0.95 - share) * i / model.arch.n_layers, f"dense layer {i + 1}, to compare"),
        )
        with recording(dense):
            dense_hidden = model.hidden(ids[None], use_cache=False)[0]
        if reference is not model:
            progress(0.95, "the model with all its weights, to compare")
            dense_hidden = reference.hidden(ids[None], use_cache=False)[0]
        found |= _compared_losses(model, reference, ids, hidden, dense_hidden)
        found |= {
            "regret": dense.regret,
            "ideal_recall": dense.recall,
            "ideal_cosine": dense.cosine,
            "ideal_mass": dense.mass,
        }
        seconds["dense"] = round(time.perf_counter() - began - forward_seconds, 3)
    else:
        nll = np.full(len(ids), np.nan, np.float32)
        for start, end, logits in model.logit_rows(hidden):
            chosen = picked(logits, ids[start + 1 : end + 1])
            nll[start:end] = log_total(logits).cpu().numpy() - chosen
            del logits  # before the next block is made
        found["nll"] = nll
        if draft.provenance.pipeline == "dense":
            zero = np.zeros(len(ids), np.float32)
            found |= {"dense_nll": nll, "kl_to_dense": zero, "top1_agrees": zero + 1}
    progress(1.0, "done")
    return replace(draft, provenance=replace(draft.provenance, seconds=seconds), **found)


def _compared_losses(
    model: Model, reference: Model, ids: torch.Tensor, hidden: torch.Tensor, dense_hidden: torch.Tensor
) -> dict[str, Any]:
    n = len(ids)
    nll, dense_nll = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    kl, agrees = np.zeros(n, np.float32), np.zeros(n, np.float32)
    for start, end, logits in model.logit_rows(hidden):
        dense_logits = reference.logits(dense_hidden[start:end])
        following = ids[start + 1 : end + 1]
        total, dense_total = log_total(logits.clone()), log_total(dense_logits.clone())
        nll[start:end] = total.cpu().numpy() - picked(logits, following)
        dense_nll[start:end] = dense_total.cpu().numpy() - picked(dense_logits, following)
        log_p, log_dense = logits.sub_(total[:, None]), dense_logits.sub_(dense_total[:, None])
        agrees[start:end] = (log_dense.argmax(-1) == log_p.argmax(-1)).cpu().numpy()
        more = log_p.neg_().add_(log_dense)  # in place, as the vocabulary may be large
        kl[start:end] = log_dense.exp_().mul_(more).sum(-1).clamp_min(0).cpu().numpy()
        del logits, dense_logits, log_p, log_dense, more  # before the next blocks are made
    return {"nll": nll, "dense_nll": dense_nll, "kl_to_dense": kl, "top1_agrees": agrees}


def dense_bytes(model: Model, n: int) -> int:
    arch = model.arch
    return 2 * arch.n_layers * arch.n_kv_heads * arch.head_dim * n * model.dtype.itemsize
