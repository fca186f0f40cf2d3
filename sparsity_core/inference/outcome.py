"""What a pass under a pipeline left behind, as a Trace: first what the recorder tells, then the losses."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sparselens_kernels import KeyMask

from sparsity_core.attention import AgainstDense, Offloaded, Recorder, cuts_once
from sparsity_core.kinds import EvictionMethod, Pipeline
from sparsity_core.models import Model, check_losses, log_total, picked, recording
from sparsity_core.record import Losses, Provenance, SizeRecord, TextRecord, Trace
from sparsity_core.weights import neuron_counts
from sparsity_core.work import Progress


def _versions(model: Model) -> dict[str, str]:
    """The versions of the libraries that decide the numbers and, of a hub model, its commit."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return found | ({"hub revision": model.revision} if model.revision else {})


def draft(
    recorder: Recorder,
    pipeline: Pipeline,
    reference: Model,
    text: TextRecord,
    asked: Mapping[str, Any],
    kv_bytes: int,
    offload: Offloaded | None = None,
) -> Trace:
    """The trace as far as the pruned pass alone tells it.

    `reference` is the model that the pipeline started from; `asked` what was asked for beside it: seed, add_bos, question.
    """
    n, model, stages = len(text.token_ids), recorder.model, recorder.stages
    evicted_at = recorder.evicted_at(n)
    prompt = text.token_ids[: text.n_prompt].astype(np.int64)
    provenance = Provenance(
        model=reference.name,
        fingerprint=reference.fingerprint,  # the pipeline's own text says how its weights were cut
        pipeline=str(pipeline),
        seed=asked["seed"],
        add_bos=asked["add_bos"],
        question="" if asked["question"] == "auto" else asked["question"],
        inputs=pipeline.inputs(),
        dtype=model.dtype_name,
        device=str(model.device),
        backends=tuple(sorted(stages.eviction.backends)),
        prompt_hash=hashlib.sha256(prompt.tobytes()).hexdigest()[:12],
        versions=_versions(reference),
        seconds={},
    )
    protected = stages.eviction.protected
    return Trace(
        provenance=provenance,
        text=text,
        n_heads=model.arch.n_heads,
        evicted_at=evicted_at,
        losses=Losses(*(np.full(n, np.nan, np.float32) for _ in range(4))),
        eviction=stages.eviction.record(n),
        kv_bytes=kv_bytes,
        kv_bytes_dense=reference.cache_bytes(n),
        notes=tuple(_notes(recorder, pipeline, evicted_at)),
        protected=np.zeros(0, bool) if protected is None else protected[0].numpy()[:n],
        gate=None if stages.gate is None else stages.gate.record(n),
        prefill=None if stages.prefill is None else stages.prefill.record(n),
        reading=None if stages.reading is None else stages.reading.record(n),
        thinning=None if stages.thinning is None else stages.thinning.record(n),
        offload=None if offload is None else offload.moved.record(),
        drift_record=None if stages.reading is None else stages.reading.drift(),
        sizes=_sizes(recorder, pipeline, reference),
    )


def _sizes(recorder: Recorder, pipeline: Pipeline, reference: Model) -> SizeRecord:
    model = recorder.model
    arch = model.arch
    decode = pipeline.decode
    return SizeRecord(
        pair_flops=np.full(arch.n_layers, 4 * arch.n_heads * arch.head_dim, np.int64),
        neurons=np.asarray(neuron_counts(reference), np.int64),
        neurons_left=np.asarray(neuron_counts(model), np.int64),
        head_dim=arch.head_dim,
        ranked_channels=arch.head_dim if decode is None else decode.ranked_channels(arch.head_dim),
        weight_bytes=reference.n_bytes(),
        weight_bytes_left=model.n_bytes(),
        token_flops=reference.token_flops(),
        token_flops_left=model.token_flops(),
        index_bytes=recorder.index_bytes,
    )


def _notes(recorder: Recorder, pipeline: Pipeline, evicted_at: np.ndarray) -> list[str]:
    """What a reader of the trace should know: why nothing was dropped, and which gate ran for another."""
    n, method = evicted_at.shape[2], pipeline.eviction
    notes = []
    if pipeline.gate is not None and method is None and not (evicted_at < n).any():
        notes.append("Nothing was dropped: the gate keeps all of this text. Raise its threshold, or use a larger γ.")
    elif method is not None and not (evicted_at < n).any():
        notes.append(_why_nothing(method, recorder, n))
    if pipeline.prefill is not None and pipeline.prefill.looks_ahead:
        notes.append(
            f"{pipeline.prefill.name} looks ahead: later tokens of the prompt decide what its earlier ones see, so the prompt "
            "has no perplexity. What is generated after it is measured."
        )
    stage = recorder.stages.gate
    note = "" if pipeline.gate is None or stage is None else pipeline.gate.note(stage.gate)
    return [*notes, note] if note else notes


def _why_nothing(method: EvictionMethod, recorder: Recorder, n: int) -> str:
    """Why no query of a text of n tokens missed a key, and what to do about it."""
    rules = recorder.stages.eviction.rules
    n_prefill = recorder.stages.eviction.n_prefill
    if all(rule.budget is None for rule in rules):
        if any(layer.window is not None and layer.window <= method.budget for layer in recorder.model.caches):
            return "Nothing was dropped: no layer that is pruned looks further back than the budget. Choose a smaller budget."
        return "Nothing was dropped: every layer is left dense. Lower dense_layers."
    if recorder.drops:
        return "The text ends where the budget is first passed, so no query missed what was dropped. Choose a smaller budget."
    advice = "Choose a smaller budget." if min(n, method.budget) > 1 else "Read a longer text."
    if cuts_once(rules) and n_prefill < n:
        return (
            f"Nothing was dropped: the cut comes after the first {n_prefill} tokens, and the budget is {method.budget}. "
            + advice
        )
    return f"Nothing was dropped: the text has {n} {'token' if n == 1 else 'tokens'} and the budget is {method.budget}. {advice}"


def complete(
    model: Model,
    draft: Trace,
    hidden: torch.Tensor,
    reference: Model | None,
    began: float,
    forward_seconds: float,
    share: float,
    progress: Progress,
    masks: Mapping[int, KeyMask] | None = None,
) -> Trace:
    """Adds the loss of the pruned pass and, with a dense pass, what the pruning cost.

    Eviction is held against the same weights without eviction, the losses against the reference, whose weights are whole.
    Queries whose masks looked ahead have no losses: of the tokens read at once all but the last.
    """
    ids = torch.from_numpy(draft.token_ids.astype(np.int64))
    seconds = {"forward": round(forward_seconds, 3)}
    found: dict[str, Any] = {}
    if reference is not None:
        dense = AgainstDense(
            draft.evicted_at,
            draft.n_heads,
            lambda i: progress(share + (0.95 - share) * i / model.arch.n_layers, f"dense layer {i + 1}, to compare"),
            masks,
        )
        with recording(dense):
            dense_hidden = model.hidden(ids[None], use_cache=False)[0]
        if reference is not model:
            progress(0.95, "the model with all its weights, to compare")
            dense_hidden = reference.hidden(ids[None], use_cache=False)[0]
        found |= _compared_losses(model, reference, ids, hidden, dense_hidden)
        found |= {
            "probe_steps": dense.steps,
            "regret": dense.regret,
            "ideal_recall": dense.recall,
            "ideal_cosine": dense.cosine,
            "ideal_mass": dense.mass,
        }
        if draft.prefill is not None:
            found |= {n: getattr(dense, n) for n in ("coverage", "top_recall", "top_precision")}
        seconds["dense"] = round(time.perf_counter() - began - forward_seconds, 3)
    else:
        found |= _own_losses(model, ids, hidden, dense=draft.provenance.pipeline == "dense")
    for each, of in (("nll", model), ("dense_nll", reference)):
        if of is not None and each in found:
            check_losses(found[each], of.name)
    if draft.prefill is not None and draft.prefill.looks_ahead:
        for name in {"nll", "kl_to_dense", "top1_agrees"} & set(found):
            found[name][: draft.n_at_once - 1] = np.nan  # what these queries saw was chosen by tokens after them
    progress(1.0, "compared with the dense model")
    return draft.replaced(provenance=replace(draft.provenance, seconds=seconds), **found)


def _own_losses(model: Model, ids: torch.Tensor, hidden: torch.Tensor, dense: bool) -> dict[str, np.ndarray]:
    """The losses of a run that nothing is compared with; those of a dense one are the dense model's too."""
    nll = np.full(len(ids), np.nan, np.float32)
    for start, end, logits in model.logit_rows(hidden):
        chosen = picked(logits, ids[start + 1 : end + 1])
        nll[start:end] = log_total(logits).cpu().numpy() - chosen
        del logits  # before the next block is made
    zero = np.zeros(len(ids), np.float32)
    return {"nll": nll, **({"dense_nll": nll, "kl_to_dense": zero, "top1_agrees": zero + 1} if dense else {})}


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
