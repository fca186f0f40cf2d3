"""generate: new tokens from a cache that physically loses what the pipeline drops."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from sparsity_core.attention import HostLayer, Offloaded, Recorder, ThinLayer
from sparsity_core.inference.checks import check_run, ids_of, pipeline_of, whole
from sparsity_core.inference.outcome import complete, draft
from sparsity_core.inference.question import asked_of_prompt
from sparsity_core.inference.stages import pruned, recorder_for, snapshot_steps
from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline, ReadingMethod, ThinningMethod
from sparsity_core.models import Model, held, new_cache, recording
from sparsity_core.record import Trace, notebook_table, token_classes
from sparsity_core.work import Progress, silent


@dataclass(frozen=True, eq=False)
class Generation:
    """What the model wrote under a pipeline. `trace` covers the prompt and the new tokens."""

    text: str
    token_ids: list[int]
    trace: Trace
    kv_bytes: int
    kv_bytes_dense: int

    def _repr_html_(self) -> str:
        """How a notebook shows it: what was written, and what the cache held."""
        facts = [
            ("pipeline", self.trace.provenance.pipeline),
            ("new tokens", f"{len(self.token_ids):,}"),
            ("text", self.text),
        ]
        facts.append(("KV cache", f"{self.kv_bytes:,} bytes, {self.kv_bytes / self.kv_bytes_dense:.0%} of dense"))
        return notebook_table("Generation", facts, self.trace.notes)


@torch.inference_mode()
def generate(
    model: Model,
    prompt: str | Sequence[int],
    pipeline: Pipeline | str | None = None,
    *,
    max_new_tokens: int = 32,
    seed: int = 0,
    temperature: float = 0.0,
    n_prefill: int | None = None,
    snapshots: int = 64,
    against_dense: bool = True,
    add_bos: str = "auto",
    question: str = "auto",
    stop_at_eos: bool = True,
    progress: Progress = silent,
) -> Generation:
    """At least 1 token after a prompt, from a cache that physically loses what the pipeline evicts.

    Args:
        temperature: 0 takes the likeliest token; above it, samples with `seed`.
        n_prefill: tokens of the prompt that are read at once, all where None; the rest are decode steps, as new tokens are.
        question: "unknown" reads at once what stands before the prompt's question, "known" the whole prompt.
        others: as in `run`.

    Raises ValueError for a prompt or pipeline that does not fit, and whatever `progress` raises to cancel.
    """
    pipeline, seed, ids = pipeline_of(pipeline), whole("seed", seed), ids_of(model, prompt, add_bos)
    n_prefill = _prefilled(ids, asked_of_prompt(model, ids, question, n_prefill))
    total = _check_lengths(model, pipeline, ids, n_prefill, seed, max_new_tokens, temperature)
    reference, model = model, pruned(model, pipeline, progress)
    dense = reference if against_dense and pipeline.methods else None
    began, words, cache = time.perf_counter(), Words.of(model, ids[:n_prefill]), new_cache(model.hf)
    offload = _prepared(model, pipeline, cache, total)
    read, step = _shares(len(ids), max_new_tokens, None if dense is None else total)
    layer = read * step / model.arch.n_layers
    recorder = recorder_for(
        reference,
        pipeline,
        words,
        n_tokens=total,
        n_prefill=n_prefill,
        first=n_prefill,
        snapshot_steps=snapshot_steps(model, total, snapshots),
        seed=seed,
        cache=cache,
        offload=offload,
        on_layer=lambda i: None if recorder.start else progress(layer * i, f"prompt, layer {i + 1}"),
        progress=progress,
    )
    choice = _Choice(max_new_tokens, _eos_ids(model) if stop_at_eos else set(), temperature, seed)
    told = partial(_tell, progress, read, step, max_new_tokens)
    with recording(recorder), contextlib.closing(offload) if offload is not None else contextlib.nullcontext():
        new, hidden = _write(recorder, words, ids[n_prefill:], choice, told)
    seconds, kv_bytes = time.perf_counter() - began, held(cache) + recorder.index_bytes
    record = Words.of(model, [*ids, *new[:-1]]).record(len(ids), _written(model, new), n_prefill)
    asked = {"seed": seed, "add_bos": add_bos, "question": question}
    trace = draft(recorder, pipeline, reference, record, asked, kv_bytes, offload)
    done = (read + max_new_tokens) * step
    trace = complete(model, trace, hidden, dense, began, seconds, done, progress, masks=recorder.masks)
    return Generation(record.continuation, new, trace, kv_bytes, trace.kv_bytes_dense)


def _check_lengths(
    model: Model,
    pipeline: Pipeline,
    ids: list[int],
    n_prefill: int,
    seed: int,
    max_new_tokens: int,
    temperature: float,
) -> int:
    """How many tokens the model reads in all: the last new one is never an input. Raises ValueError where it cannot."""
    pipeline.check(generates=True)
    if whole("max_new_tokens", max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is 0 or more; got {temperature}")
    check_run(model, ids, seed, extra=max_new_tokens)
    total = len(ids) + max_new_tokens - 1
    model.check_steps(n_prefill, total, drops=pipeline.gate is not None or pipeline.eviction is not None)
    return total


@dataclass(frozen=True)
class _Choice:
    """How the next token is chosen, and when that ends."""

    most: int
    stops: set[int]
    temperature: float
    seed: int


def _prefilled(ids: list[int], asked: int | None) -> int:
    """How many tokens of the prompt are read at once. Raises ValueError for none of them, and for more than there are."""
    if asked is None:
        return len(ids)
    if not 1 <= whole("n_prefill", asked) <= max(1, len(ids)):  # an empty prompt has a sentence of its own
        raise ValueError(f"n_prefill is 1 to {len(ids)}, the tokens of the prompt; got {asked}")
    return whole("n_prefill", asked)


def _written(model: Model, new: list[int]) -> str:
    return str(model.tokenizer.decode(new, skip_special_tokens=True))


def _tell(progress: Progress, read: float, step: float, most: int, n: int) -> None:
    progress(step * (read + n - 1), f"token {n} of {most}")


def _write(
    recorder: Recorder, words: Words, rest: list[int], choice: _Choice, told: Callable[[int], None]
) -> tuple[list[int], torch.Tensor]:
    """(the new tokens, up to the first that stops; the hidden states [T, hidden] of all that was read).

    `words` are read at once, then the `rest` of the prompt a token at a time.
    """
    sampler = torch.Generator().manual_seed(choice.seed)
    model, feed, new, waiting = recorder.model, words.ids, list[int](), list(rest)
    states = []
    while True:
        at = torch.arange(recorder.start, recorder.start + len(feed), device=model.device)[None]
        hidden = model.hidden(torch.tensor([feed]), past_key_values=recorder.cache, position_ids=at, use_cache=True)[0]
        recorder.start += len(feed)
        states.append(hidden)
        if waiting:
            feed = [waiting.pop(0)]
        else:
            new.append(_next_token(model.logits(hidden[-1]), choice.temperature, sampler))
            told(len(new))
            if len(new) == choice.most or new[-1] in choice.stops:
                recorder.check_fired(len(states))
                return new, torch.cat(states)
            feed = [new[-1]]
        words.classes.extend(token_classes(model.tokenizer, feed))


def _shares(n_prompt: int, n_new: int, compared: int | None) -> tuple[float, float]:
    """For a progress bar: the decode steps that reading the prompt is worth, and a step's share of the whole work.

    The whole includes a dense pass over `compared` tokens, where there is one.
    """
    read = 1 + n_prompt / 64  # by its time on a laptop's CPU
    return read, 1 / (read + n_new + (0 if compared is None else 1 + compared / 64))


def _prepared(model: Model, pipeline: Pipeline, cache: Any, total: int) -> Offloaded | None:
    """Gives the cache the layers that the decode method asks for; what fetches from them where they lie in host memory."""
    method, n = pipeline.decode, model.arch.n_layers
    on_host = isinstance(method, ReadingMethod) and method.keeps_cache_on_host
    if method is None or not (on_host or isinstance(method, ThinningMethod)):
        return None
    if any(type(layer) is not DynamicLayer for layer in cache.layers) or any(layer.latent for layer in model.caches):
        instead = "leave offload off" if on_host else f"leave {method.name} out"
        raise ValueError(f"the cache of {model.name} holds more than each layer's keys and values: {instead}")
    dense = min(method.first_layers, n)
    own = [HostLayer(total) if on_host else ThinLayer() for _ in range(n - dense)]
    cache.layers = [*(DynamicLayer() for _ in range(dense)), *own]
    return Offloaded(cache.layers, model.device) if on_host else None


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
