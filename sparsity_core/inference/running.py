"""run: one forward of a text under a pipeline, as a Trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from sparsity_core.attention import Recorder, forward
from sparsity_core.inference.checks import check_run, ids_of, one_at_a_time, pipeline_of, whole
from sparsity_core.inference.outcome import complete, draft
from sparsity_core.inference.question import asked_of_run
from sparsity_core.inference.stages import prefill_of, pruned, recorder_for, snapshot_steps
from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model
from sparsity_core.record import Trace
from sparsity_core.work import Progress, silent

_LOGIT_ELEMENTS = 2**27  # of logits at once: 512 MB of float32


@torch.inference_mode()
def run(
    model: Model,
    prompt: str | Sequence[int],
    pipeline: Pipeline | str | None = None,
    *,
    seed: int = 0,
    n_prefill: int | None = None,
    snapshots: int = 64,
    against_dense: bool = True,
    add_bos: str = "auto",
    question: str = "auto",
    progress: Progress = silent,
) -> Trace:
    """One forward over the text, every query of it a decode step, so that it gives perplexity too.

    Args:
        prompt: text, or token ids.
        pipeline: a Pipeline or its text; the dense model where None.
        n_prefill: tokens that a method of one cut (SnapKV, A2SF prefill) reads densely before it; half the text where
            None. Methods that drop as they go ignore it.
        snapshots: how many times, at most, the accumulated scores are copied into the trace.
        against_dense: a second, dense pass for regret, the ideal mask and KL.
        add_bos: whether a text starts with the start token: "auto" as the tokenizer does, "yes" or "no". Never with two.
        question: "known" and "unknown" put a cut after and before the prompt's question, in place of `n_prefill`.

    Raises ValueError for a prompt or pipeline that does not fit, and whatever `progress` raises to cancel.
    """
    pipeline, seed = pipeline_of(pipeline), whole("seed", seed)
    pipeline.check(generates=False, shares_heads=model.arch.n_heads > model.arch.n_kv_heads)
    ids = ids_of(model, prompt, add_bos)
    check_run(model, ids, seed)
    reference, model = model, pruned(model, pipeline, progress)
    against_dense = against_dense and bool(pipeline.methods)
    n = len(ids)
    n_prefill = prefill_of(model, pipeline, n, asked_of_run(model, ids, pipeline, question, n_prefill))
    began = time.perf_counter()
    words = Words.of(model, ids)
    weight = 0.5 if against_dense else 1.0
    progress(0.0, "reading the prompt")
    recorder, hidden = _read(
        reference,
        pipeline,
        words,
        n_prefill=n_prefill,
        snapshot_steps=snapshot_steps(model, n, snapshots),
        seed=seed,
        on_layer=lambda i: progress(weight * i / model.arch.n_layers, f"layer {i + 1} of {model.arch.n_layers}"),
        progress=progress,
    )
    seconds = time.perf_counter() - began
    asked = {"seed": seed, "add_bos": add_bos, "question": question}
    trace = draft(recorder, pipeline, reference, words.record(n), asked, recorder.cached_bytes() + recorder.index_bytes)
    dense = reference if against_dense else None
    return complete(model, trace, hidden, dense, began, seconds, weight, progress, masks=recorder.masks)


def _read(reference: Model, pipeline: Pipeline, words: Words, **how: Any) -> tuple[Recorder, torch.Tensor]:
    """What followed the forward over a text, and its hidden states [T, hidden]; `how` as in `recorder_for`."""
    recorder = recorder_for(reference, pipeline, words, n_tokens=len(words.ids), **how)
    (hidden,) = forward(pruned(reference, pipeline), [(recorder, words.ids)])
    recorder.check_fired(1)
    return recorder, hidden


def read_logits(
    model: Model,
    ids: Sequence[int],
    pipeline: Pipeline,
    *,
    rows: int,
    n_prefill: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, float]:
    """One forward as in `run`, of which nothing is kept but what scoring needs.

    Without a stage that acts while the model runs, attention is transformers' own SDPA.

    Args:
        rows: how many of the last tokens the logits are of.
        n_prefill: as in `run`.

    Returns float32 logits of the last tokens [rows, vocabulary], and the bytes that the cache holds after the last
    one over those that it would hold with nothing dropped. Raises ValueError as `run` does.
    """
    (only,) = read_logits_batch(model, [ids], [pipeline], rows=[rows], n_prefill=[n_prefill], seed=seed)
    return only


@torch.inference_mode()
def read_logits_batch(
    model: Model,
    texts: Sequence[Sequence[int]],
    pipelines: Sequence[Pipeline],
    *,
    rows: Sequence[int],
    n_prefill: Sequence[int | None],
    seed: int = 0,
) -> list[tuple[torch.Tensor, float]]:
    """What `read_logits` gives for each text, in one forward, but for what sums of floats round to.

    Raises ValueError as `run` does, and where the model or a pipeline takes one text at a time.
    """
    if len(texts) > 1 and (why := one_at_a_time(model, pipelines, caches=False)):
        raise ValueError(f"{why}: give one text at a time")
    for ids, pipeline in zip(texts, pipelines, strict=True):
        pipeline.check(generates=False, shares_heads=model.arch.n_heads > model.arch.n_kv_heads)
        check_run(model, ids, seed)
    cut = pruned(model, pipelines[0])
    if all(set(each.methods) <= {"weights"} for each in pipelines):
        longest = max(map(len, texts))
        padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts])
        states, sizes = cut.hidden(padded, use_cache=False), [cut.cache_bytes(len(ids)) for ids in texts]
        hidden = [states[row, : len(ids)] for row, ids in enumerate(texts)]
    else:
        recorders = [
            recorder_for(
                model,
                pipeline,
                Words.of(cut, list(ids)),
                n_tokens=len(ids),
                n_prefill=prefill_of(cut, pipeline, len(ids), first),
                seed=seed,
            )
            for ids, pipeline, first in zip(texts, pipelines, n_prefill, strict=True)
        ]
        hidden = forward(cut, list(zip(recorders, texts, strict=True)))
        sizes = [recorder.cached_bytes() + recorder.index_bytes for recorder in recorders]
        for recorder in recorders:
            recorder.check_fired(1)
    # Of a text alone all tokens where it is short: what a matrix product rounds to depends on how many rows it has, and all of
    # them are what transformers computes.
    most = 0 if len(texts) > 1 else _LOGIT_ELEMENTS // cut.hf.get_input_embeddings().weight.shape[0]
    logits = [cut.logits(states[-max(n, most) :])[-n:] for states, n in zip(hidden, rows, strict=True)]
    return [(each, size / model.cache_bytes(len(ids))) for each, size, ids in zip(logits, sizes, texts, strict=True)]
