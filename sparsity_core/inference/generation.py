"""generate: new tokens from a cache that physically loses what the pipeline drops."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from sparsity_core.attention import HostLayer, Offloaded, Recorder
from sparsity_core.inference.checks import check_run, ids_of, pipeline_of, whole
from sparsity_core.inference.outcome import complete, draft
from sparsity_core.inference.stages import check_stages, pruned, recorder_for, snapshot_steps
from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model, held, new_cache, recording, token_classes
from sparsity_core.record import Trace
from sparsity_core.work import Progress, silent


@dataclass(frozen=True, eq=False)
class Generation:
    """What the model wrote under a pipeline. `trace` covers the prompt and the new tokens."""

    text: str
    token_ids: list[int]
    trace: Trace
    kv_bytes: int
    kv_bytes_dense: int


@torch.inference_mode()
def generate(
    model: Model,
    prompt: str | Sequence[int],
    pipeline: Pipeline | str | None = None,
    *,
    max_new_tokens: int = 32,
    seed: int = 0,
    temperature: float = 0.0,
    snapshots: int = 64,
    against_dense: bool = True,
    add_bos: str = "auto",
    stop_at_eos: bool = True,
    progress: Progress = silent,
) -> Generation:
    """Tokens after a prompt, from a cache that physically loses what the pipeline evicts.

    Args:
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token; above it, samples with `seed`.
        others: as in `run`.

    Raises ValueError for a prompt or pipeline that does not fit, and whatever `progress` raises to cancel.
    """
    pipeline, seed = pipeline_of(pipeline), whole("seed", seed)
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    check_stages(pipeline)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is 0 or more; got {temperature}")
    ids = ids_of(model, prompt, add_bos)
    n_prompt = len(ids)
    check_run(model, ids, seed, extra=max_new_tokens)
    total = n_prompt + max_new_tokens - 1  # the last new token is never an input
    model.check_steps(n_prompt, total, drops=pipeline.gate is not None or pipeline.eviction is not None)
    reference, model = model, pruned(model, pipeline, progress)
    against_dense = against_dense and bool(pipeline.methods)
    began = time.perf_counter()
    words = Words.of(model, ids)
    cache = new_cache(model.hf)
    offload = _offloaded(model, pipeline, cache, total)
    read, compared = _steps_of(n_prompt), _steps_of(total) if against_dense else 0
    step_share = 1 / (read + max_new_tokens + compared)
    states: list[torch.Tensor] = []
    recorder = recorder_for(
        reference,
        pipeline,
        words,
        n_tokens=total,
        n_prefill=n_prompt,
        first=n_prompt,
        snapshot_steps=snapshot_steps(model, total, snapshots),
        seed=seed,
        cache=cache,
        offload=offload,
        on_layer=lambda i: (
            progress(read * step_share * i / model.arch.n_layers, f"prompt, layer {i + 1}") if not states else None
        ),
        progress=progress,
    )
    sampler = torch.Generator().manual_seed(seed)
    new: list[int] = []
    with recording(recorder), contextlib.closing(offload) if offload is not None else contextlib.nullcontext():
        for hidden in _forwards(recorder, ids, new):
            states.append(hidden)
            new.append(_next_token(model.logits(hidden[-1]), temperature, sampler))
            progress(step_share * (read + len(new) - 1), f"token {len(new)} of {max_new_tokens}")
            if len(new) == max_new_tokens or (stop_at_eos and new[-1] in _eos_ids(model)):
                break
            words.classes.extend(token_classes(model.tokenizer, [new[-1]]))
    recorder.check_fired(len(states))
    forward_seconds = time.perf_counter() - began
    kv_bytes = held(cache) + recorder.index_bytes
    text = model.tokenizer.decode(new, skip_special_tokens=True)
    record = Words.of(model, [*ids, *new[:-1]]).record(n_prompt, text)
    trace = draft(recorder, pipeline, reference, record, seed=seed, add_bos=add_bos, kv_bytes=kv_bytes)
    if offload is not None:
        trace = replace(trace, offload=offload.moved.record())
    share = (read + max_new_tokens) * step_share
    trace = complete(
        model,
        trace,
        torch.cat(states),
        reference if against_dense else None,
        began,
        forward_seconds,
        share,
        progress,
        masks=recorder.masks,
    )
    return Generation(text=text, token_ids=new, trace=trace, kv_bytes=kv_bytes, kv_bytes_dense=trace.kv_bytes_dense)


def _forwards(recorder: Recorder, prompt: list[int], new: list[int]) -> Iterator[torch.Tensor]:
    """The hidden states [Tq, hidden] of the prompt, then those of each token that has been added to `new` by then."""
    model, feed = recorder.model, prompt
    while True:
        at = torch.arange(recorder.start, recorder.start + len(feed), device=model.device)[None]
        hidden = model.hidden(torch.tensor([feed]), past_key_values=recorder.cache, position_ids=at, use_cache=True)
        recorder.start += len(feed)
        yield hidden[0]
        feed = [new[-1]]


def _steps_of(n: int) -> float:
    """A pass over n tokens, in decode steps, by its time on a laptop's CPU; for a progress bar."""
    return 1 + n / 64


def _offloaded(model: Model, pipeline: Pipeline, cache: Any, total: int) -> Offloaded | None:
    """What fetches from host memory where the decode method asks for it, with the cache's layers to fetch from."""
    method = pipeline.decode
    if method is None or not method.keeps_cache_on_host:
        return None
    if any(type(layer) is not DynamicLayer for layer in cache.layers) or any(layer.latent for layer in model.caches):
        raise ValueError(f"the cache of {model.name} holds more than each layer's keys and values: leave offload off")
    dense = min(method.dense_layers, model.arch.n_layers)
    host = [HostLayer(total) for _ in range(model.arch.n_layers - dense)]
    cache.layers = [*(DynamicLayer() for _ in range(dense)), *host]
    return Offloaded(cache.layers, model.device)


def _next_token(logits: torch.Tensor, temperature: float, sampler: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    logits = logits.cpu().double()  # in float32 a temperature below 1e-45 would be 0
    weights = torch.softmax((logits - logits.max()) / temperature, -1)  # the largest is 0: nothing overflows
    return int(torch.multinomial(weights, 1, generator=sampler))


def _eos_ids(model: Model) -> set[int]:
    configured = getattr(model.hf.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, getattr(model.tokenizer, "eos_token_id", None)] if i is not None}
