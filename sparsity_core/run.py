"""run: one forward of a text under a pipeline, as a Trace. generate: the same with tokens that the model adds."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from sparsity_core.method import DecodeMethod, EvictionMethod, Pipeline, Progress, silent
from sparsity_core.models import Model, load
from sparsity_core.offload import HostLayer, Offloaded
from sparsity_core.outcome import complete, dense_bytes, draft
from sparsity_core.reading import Reading
from sparsity_core.record import Recorder, cuts_once, layer_rules
from sparsity_core.rules import ruled
from sparsity_core.seam import Enough, recording
from sparsity_core.text import pieces, token_classes
from sparsity_core.trace import RunSpec, Trace

_SNAPSHOT_ELEMENTS = 6_000_000  # of a trace's scores: 24 MB of float32


@dataclass(frozen=True, eq=False)
class Generation:
    """What the model wrote under a pipeline. `trace` covers the prompt and the new tokens."""

    text: str
    token_ids: list[int]
    trace: Trace
    kv_bytes: int
    kv_bytes_dense: int


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

    Raises ValueError for a prompt or pipeline that does not fit, and whatever `progress` raises to cancel.
    """
    pipeline, seed = pipeline_of(pipeline), whole("seed", seed)
    method = _eviction_of(pipeline)
    ids = _ids(model, prompt)
    _check(model, ids, seed)
    reference, model = model, pruned(model, pipeline, progress)
    against_dense = against_dense and bool(pipeline.methods)
    n = len(ids)
    n_prefill = _default_prefill(model, method, n) if n_prefill is None else whole("n_prefill", n_prefill)
    if n_prefill < 0:
        raise ValueError(f"n_prefill is 0 or more tokens; got {n_prefill}")
    began = time.perf_counter()
    texts, groups = pieces(model.tokenizer, ids)
    classes = token_classes(model.tokenizer, ids)
    weight = 0.5 if against_dense else 1.0
    recorder = Recorder(
        model,
        method,
        n_tokens=n,
        n_prefill=n_prefill,
        token_classes=classes,
        snapshot_steps=snapshot_steps(model, n, snapshots),
        seed=seed,
        reading=_reading(model, pipeline, n, 0, progress),
        **gate_arguments(reference, pipeline),
        **_ruling(pipeline, texts, n),
        on_layer=lambda i: progress(weight * i / model.arch.n_layers, f"layer {i + 1} of {model.arch.n_layers}"),
    )
    progress(0.0, "reading the prompt")
    tensor = torch.tensor([ids])
    with recording(recorder):
        hidden = model.hidden(tensor, use_cache=False)[0]
    recorder.check_fired(1)
    forward_seconds = time.perf_counter() - began
    trace = draft(recorder, pipeline, reference, ids, texts, groups, classes, n_prompt=n, seed=seed)
    per_key = 2 * model.arch.head_dim * model.dtype.itemsize
    kv_bytes = recorder.n_cached() * per_key + recorder.index_bytes
    trace = replace(trace, kv_bytes=kv_bytes, kv_bytes_dense=dense_bytes(reference, n))
    return complete(
        model, trace, hidden, reference if against_dense else None, began, forward_seconds, weight, progress
    )


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
    from transformers import DynamicCache

    pipeline, seed = pipeline_of(pipeline), whole("seed", seed)
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    method = _eviction_of(pipeline)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is 0 or more; got {temperature}")
    ids = _ids(model, prompt)
    n_prompt = len(ids)
    _check(model, ids, seed, extra=max_new_tokens)
    reference, model = model, pruned(model, pipeline, progress)
    against_dense = against_dense and bool(pipeline.methods)
    total = n_prompt + max_new_tokens - 1  # the last new token is never an input
    began = time.perf_counter()
    classes = token_classes(model.tokenizer, ids)
    cache: Any = DynamicCache()  # without the model's config: our masks decide what is seen, sliding windows included
    offload = _offloaded(model, pipeline, cache, total)
    read, compared = _steps_of(n_prompt), _steps_of(total) if against_dense else 0
    step_share = 1 / (read + max_new_tokens + compared)
    share = (read + max_new_tokens) * step_share
    recorder = Recorder(
        model,
        method,
        n_tokens=total,
        n_prefill=n_prompt,
        token_classes=classes,
        snapshot_steps=snapshot_steps(model, total, snapshots),
        seed=seed,
        cache=cache,
        reading=_reading(model, pipeline, total, n_prompt, progress, offload),
        **gate_arguments(reference, pipeline),
        **_ruling(pipeline, pieces(model.tokenizer, ids)[0], total),
        on_layer=lambda i: (
            progress(read * step_share * i / model.arch.n_layers, f"prompt, layer {i + 1}") if not states else None
        ),
    )
    states: list[torch.Tensor] = []
    sampler = torch.Generator().manual_seed(seed)
    feed = torch.tensor([ids])
    with recording(recorder), contextlib.closing(offload) if offload is not None else contextlib.nullcontext():
        for step in range(max_new_tokens):
            position = torch.arange(recorder.start, recorder.start + feed.shape[1], device=model.device)[None]
            states.append(model.hidden(feed, past_key_values=cache, position_ids=position, use_cache=True)[0])
            recorder.start += feed.shape[1]
            token = _next_token(model.logits(states[-1][-1]), temperature, sampler)
            ids.append(token)
            progress(step_share * (read + step), f"token {step + 1} of {max_new_tokens}")
            if stop_at_eos and token in _eos_ids(model):
                break
            classes += token_classes(model.tokenizer, [token])
            feed = torch.tensor([[token]])
    recorder.check_fired(len(states))
    forward_seconds = time.perf_counter() - began
    seen = ids[:-1]
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) + recorder.index_bytes
    texts, groups = pieces(model.tokenizer, seen)
    trace = draft(
        recorder, pipeline, reference, seen, texts, groups, classes[: len(seen)], n_prompt=n_prompt, seed=seed
    )
    trace = replace(trace, kv_bytes=kv_bytes, kv_bytes_dense=dense_bytes(reference, len(seen)))
    if offload is not None:
        moved = offload.moved
        trace = replace(
            trace,
            prefetch_hits=np.asarray(moved.hit_rate, np.float32),
            bytes_ahead=moved.bytes_ahead,
            bytes_late=moved.bytes_late,
        )
    hidden = torch.cat(states)
    trace = complete(
        model, trace, hidden, reference if against_dense else None, began, forward_seconds, share, progress
    )
    new = ids[n_prompt:]
    text = model.tokenizer.decode(new, skip_special_tokens=True)
    trace = replace(trace, continuation=text)
    return Generation(text=text, token_ids=new, trace=trace, kv_bytes=kv_bytes, kv_bytes_dense=trace.kv_bytes_dense)


def _steps_of(n: int) -> float:
    """A pass over n tokens, in decode steps, by its time on a laptop's CPU; for a progress bar."""
    return 1 + n / 64


def execute(spec: RunSpec, progress: Progress = silent) -> Trace:
    """What a spec asks for, with its model loaded by name: the one entry of jobs and the command line.

    Raises ValueError for anything in the spec that does not fit.
    """
    pipeline = Pipeline.parse(spec.pipeline)
    if not spec.prompt.strip():
        raise ValueError("the prompt is empty: type or choose some text")
    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    if not spec.generate:
        return run(model, spec.prompt, pipeline, seed=spec.seed, progress=progress)
    return generate(model, spec.prompt, pipeline, max_new_tokens=spec.generate, seed=spec.seed, progress=progress).trace


def snapshot_steps(model: Model, n: int, most: int) -> list[int]:
    """Evenly spaced queries, the last among them, so few that the scores stay below 24 MB."""
    room = _SNAPSHOT_ELEMENTS // max(1, model.arch.n_layers * model.arch.n_kv_heads * n)
    count = min(most, n, max(2, room))
    return sorted(set(np.linspace(n - 1, 0, count).round().astype(int).tolist())) if count else []


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
    return np.asarray(wanted, np.int32), recorder.layer_snapshots(layer)


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
    reference, model = model, pruned(model, pipeline)
    return Recorder(
        model,
        _eviction_of(pipeline),
        n_tokens=trace.n_tokens,
        n_prefill=trace.n_prefill,
        token_classes=trace.classes,
        snapshot_steps=snapshot_steps,
        seed=trace.provenance.seed,
        only_layer=only_layer,
        on_layer=lambda i: progress(i / model.arch.n_layers, f"layer {i + 1}"),
        **gate_arguments(reference, pipeline),
        **_ruling(pipeline, trace.texts[: trace.n_prompt], trace.n_tokens),
        reading=_reading(model, pipeline, trace.n_tokens, trace.n_prompt if trace.continuation else 0, silent),
    )


def _reading(
    model: Model, pipeline: Pipeline, n_tokens: int, first: int, progress: Progress, offload: Offloaded | None = None
) -> Reading | None:
    """The pipeline's decode stage over a text; queries from `first` on select."""
    method = pipeline.decode
    if method is None:
        return None
    if not isinstance(method, DecodeMethod):
        raise ValueError(f"{method.name} is no decode method")
    if method.needs_all_keys and (pipeline.gate is not None or pipeline.eviction is not None):
        raise ValueError(method.needs_all_keys)
    make = method.selectors(model, lambda share, doing: progress(0.0, doing))
    return Reading(
        model,
        n_tokens,
        lambda layer: None if layer < method.dense_layers else make(layer),
        method.tokens_of,
        first=first,
        dense_every=method.dense_every,
        mean_value=getattr(method, "mean_value", False),
        offload=offload,
    )


def _offloaded(model: Model, pipeline: Pipeline, cache: Any, total: int) -> Offloaded | None:
    """What fetches from host memory where the decode method asks for it, with the cache's layers to fetch from."""
    method = pipeline.decode
    if method is None or not getattr(method, "offload", False):
        return None
    assert isinstance(method, DecodeMethod)
    dense = min(method.dense_layers, model.arch.n_layers)
    host = [HostLayer(total) for _ in range(model.arch.n_layers - dense)]
    cache.layers = [*(DynamicLayer() for _ in range(dense)), *host]
    return Offloaded(cache.layers, model.device)


_pruned: dict[tuple[str, str, str, str], Model] = {}


def pruned(model: Model, pipeline: Pipeline, progress: Progress = silent) -> Model:
    """The model after the pipeline's weights stage. The one pruned last is kept and returned again for the same ask."""
    if pipeline.weights is None:
        return model
    key = (model.fingerprint, model.dtype_name, str(model.device), str(pipeline.weights))
    found = _pruned.get(key)
    if found is None:
        found = pipeline.weights.compress(model, lambda share, doing: progress(0.0, doing)).model
        _pruned.clear()  # one at a time, as with loaded models
        _pruned[key] = found
    return found


def whole(name: str, value: Any) -> int:
    """A whole number of Python, NumPy or torch as Python's. Raises ValueError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is a whole number; got {value!r}") from None


def _ids(model: Model, prompt: Any) -> list[int]:
    """A text's token ids, or those given. Raises ValueError for what is neither."""
    if isinstance(prompt, str):
        return model.encode(prompt)
    try:
        return [operator.index(i) for i in (prompt.tolist() if hasattr(prompt, "tolist") else prompt)]
    except TypeError:
        raise ValueError("a prompt is a text, or a flat list of token ids: give one text at a time") from None


def pipeline_of(given: Any) -> Pipeline:
    """A Pipeline, or the one that a text spells; the dense one for None. Raises ValueError for what is neither."""
    if given is None or isinstance(given, str):
        return Pipeline() if given is None else Pipeline.parse(given)
    if not isinstance(given, Pipeline):
        raise ValueError(
            f"a pipeline is a Pipeline, as in Pipeline(eviction=methods.A2SF()), or its text; got {given!r}"
        )
    return given


def _eviction_of(pipeline: Pipeline) -> EvictionMethod | None:
    if pipeline.prefill is not None:
        raise ValueError("the prefill stage cannot be run yet: weights, gate, eviction and decode methods can")
    return pipeline.eviction


def gate_arguments(model: Model, pipeline: Pipeline) -> dict[str, Any]:
    """The recorder's arguments for the gate stage."""
    if pipeline.gate is None:
        return {}
    gate = pipeline.gate.gate(model)
    if gate.query.shape[2] != pruned(model, pipeline).arch.hidden_size:
        raise ValueError(
            f"{pipeline.weights} changes the residual stream that the gate reads: leave one of the two out"
        )
    return {"gate": gate, "threshold": getattr(pipeline.gate, "threshold", 0.0)}


def _ruling(pipeline: Pipeline, texts: Sequence[str], n: int) -> dict[str, Any]:
    """The recorder's arguments for the user's rules, over a text of n tokens of which some are known."""
    found: dict[str, Any] = {}
    methods = [method for method in (pipeline.gate, pipeline.eviction) if method is not None]
    for name, rules in (("protected", [m.protect for m in methods]), ("dropped", [m.drop for m in methods])):
        named = [ruled(text, texts, n) for text in rules if text]
        if named:
            found[name] = np.logical_or.reduce(named)
    if "protected" in found and "dropped" in found:
        found["dropped"] &= ~found["protected"]
    return found


def _check(model: Model, ids: Sequence[int], seed: int, extra: int = 0) -> None:
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"the seed is a whole number of 64 bits; got {seed}")
    if not ids:
        raise ValueError("the prompt is empty: type or choose some text")
    n_vocabulary = model.hf.get_input_embeddings().weight.shape[0]
    if not 0 <= min(ids) <= max(ids) < n_vocabulary:
        raise ValueError(f"token ids lie between 0 and {n_vocabulary - 1:,}; got {min(ids):,} to {max(ids):,}")
    model.check_length(len(ids))
    if len(ids) + extra > model.arch.max_positions:
        raise ValueError(
            f"{len(ids):,} prompt tokens and {extra:,} new ones pass the {model.arch.max_positions:,} positions of "
            f"{model.name}: shorten the prompt or generate at most {model.arch.max_positions - len(ids):,}"
        )


def _default_prefill(model: Model, method: EvictionMethod | None, n: int) -> int:
    """Half the text for methods of one cut, so that the other half shows its cost; all of it for the dense model."""
    return n // 2 if cuts_once(layer_rules(model, method)) else n


def _next_token(logits: torch.Tensor, temperature: float, sampler: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    weights = torch.softmax(
        (logits.cpu() - logits.max().cpu()) / temperature, -1
    )  # the largest is 0: nothing overflows
    return int(torch.multinomial(weights, 1, generator=sampler))


def _eos_ids(model: Model) -> set[int]:
    configured = getattr(model.hf.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, getattr(model.tokenizer, "eos_token_id", None)] if i is not None}
