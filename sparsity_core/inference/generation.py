"""generate: new tokens from a cache that physically loses what the pipeline drops."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from sparsity_core.attention import HostLayer, Offloaded, ThinLayer
from sparsity_core.inference.checks import check_run, ids_of, one_at_a_time, pipeline_of, whole
from sparsity_core.inference.outcome import complete, draft
from sparsity_core.inference.question import asked_of_prompt
from sparsity_core.inference.stages import pruned, recorder_for, snapshot_steps
from sparsity_core.inference.words import Words
from sparsity_core.inference.writing import Choice, Writing, write
from sparsity_core.kinds import Pipeline, ReadingMethod, ThinningMethod
from sparsity_core.models import Model, held, new_cache
from sparsity_core.record import Trace, notebook_table
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
    n_prefill: int | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
    temperature: float = 0.0,
    snapshots: int = 64,
    against_dense: bool = True,
    add_bos: str = "auto",
    question: str = "auto",
    stop_at_eos: bool = True,
    progress: Progress = silent,
) -> Generation:
    """At least 1 token after a prompt, from a cache that physically loses what the pipeline evicts.

    Args:
        n_prefill: tokens of the prompt that are read at once, all where None; the rest are decode steps, as new tokens are.
        temperature: 0 takes the likeliest token; above it, samples with `seed`.
        question: "unknown" reads at once what stands before the prompt's question, "known" the whole prompt.
        others: as in `run`.

    Raises ValueError for a prompt or pipeline that does not fit, and whatever `progress` raises to cancel.
    """
    (only,) = generate_batch(
        model,
        [prompt],
        [pipeline],
        n_prefill=[n_prefill],
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature,
        snapshots=snapshots,
        against_dense=against_dense,
        add_bos=add_bos,
        question=question,
        stop_at_eos=stop_at_eos,
        progress=progress,
    )
    return only


@torch.inference_mode()
def generate_batch(
    model: Model,
    prompts: Sequence[str | Sequence[int]],
    pipelines: Sequence[Pipeline | str | None],
    *,
    n_prefill: Sequence[int | None] | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
    temperature: float = 0.0,
    snapshots: int = 64,
    against_dense: bool = True,
    add_bos: str = "auto",
    question: str = "auto",
    stop_at_eos: bool = True,
    progress: Progress = silent,
) -> list[Generation]:
    """What `generate` gives for each prompt, in forwards that read the weights once for all of them.

    Prompts may be of unequal lengths. Each has a pipeline (of one weights stage), an `n_prefill`, a cache and stages of its own:
    it is what it is alone, but for what sums of floats round to. The seconds of a trace are the batch's.

    Raises ValueError as `generate` does, for lists of unequal lengths, and where the model or a pipeline takes one text at a
    time.
    """
    asked, seed = _asked(model, prompts, pipelines, n_prefill, add_bos, question), whole("seed", seed)
    totals = [_check_lengths(model, each, seed, max_new_tokens, temperature) for each in asked]
    reference, model, began = model, pruned(model, asked[0].pipeline, progress), time.perf_counter()
    compared = [against_dense and bool(each.pipeline.methods) for each in asked]
    read, step = _shares(sum(len(each.ids) for each in asked), max_new_tokens, sum(totals) if any(compared) else None)
    how: dict[str, Any] = {"snapshots": snapshots, "seed": seed, "progress": progress, "read": read * step}
    texts = [_begun(reference, each, total, **how) for each, total in zip(asked, totals, strict=True)]
    choice = Choice(max_new_tokens, _eos_ids(model) if stop_at_eos else set(), temperature)
    with contextlib.ExitStack() as stack:
        for offload in [text.offload for text in texts if text.offload is not None]:
            stack.enter_context(contextlib.closing(offload))
        write(model, texts, choice, partial(_tell, progress, read, step, max_new_tokens))
    seconds, share = time.perf_counter() - began, (read + max_new_tokens) * step
    return [
        _ended(
            reference,
            text,
            each,
            {"seed": seed, "add_bos": add_bos, "question": question},
            dense=reference if dense else None,
            seconds=seconds,
            share=share + (1 - share) * place / len(texts),
            progress=progress,
        )
        for place, (text, each, dense) in enumerate(zip(texts, asked, compared, strict=True))
    ]


@dataclass(frozen=True)
class _Asked:
    """One prompt of a batch, and what is done with it."""

    pipeline: Pipeline
    ids: list[int]
    n_prefill: int


def _asked(
    model: Model,
    prompts: Sequence[Any],
    pipelines: Sequence[Any],
    n_prefill: Sequence[int | None] | None,
    add_bos: str,
    question: str,
) -> list[_Asked]:
    """What is asked for each prompt. Raises ValueError for lists of unequal lengths, and for texts that share no forward."""
    given = [None] * len(prompts) if n_prefill is None else n_prefill
    if not len(prompts) == len(pipelines) == len(given) > 0:
        raise ValueError(
            f"a batch has a pipeline and an n_prefill for each prompt; got {len(prompts)} prompts, {len(pipelines)} pipelines "
            f"and {len(given)} n_prefill"
        )
    chosen = [pipeline_of(each) for each in pipelines]
    if len(prompts) > 1 and (why := one_at_a_time(model, chosen, caches=True)):
        raise ValueError(f"{why}: give one prompt at a time")
    ids = [ids_of(model, prompt, add_bos) for prompt in prompts]
    first = [_prefilled(own, asked_of_prompt(model, own, question, n)) for own, n in zip(ids, given, strict=True)]
    return [_Asked(*each) for each in zip(chosen, ids, first, strict=True)]


def _begun(
    reference: Model, asked: _Asked, total: int, *, snapshots: int, seed: int, progress: Progress, read: float
) -> Writing:
    """A text before its first forward; `read` is the share of the whole work that the prompts' forward is."""
    model, n = pruned(reference, asked.pipeline), asked.n_prefill
    layer = read / model.arch.n_layers
    words, cache = Words.of(model, asked.ids[:n]), new_cache(model.hf)
    offload = _prepared(model, asked.pipeline, cache, total)
    recorder = recorder_for(
        reference,
        asked.pipeline,
        words,
        n_tokens=total,
        n_prefill=n,
        first=n,
        cache=cache,
        offload=offload,
        snapshot_steps=snapshot_steps(model, total, snapshots),
        seed=seed,
        on_layer=lambda i: None if recorder.start else progress(layer * i, f"prompt, layer {i + 1}"),
        progress=progress,
    )
    return Writing(recorder, words, asked.ids, torch.Generator().manual_seed(seed), offload)


def _ended(
    reference: Model,
    text: Writing,
    asked: _Asked,
    how: Mapping[str, Any],
    *,
    dense: Model | None,
    seconds: float,
    share: float,
    progress: Progress,
) -> Generation:
    """What a text came to, compared with the dense model where that is given; `how` it was asked for, as in `draft`."""
    model, pipeline = pruned(reference, asked.pipeline), asked.pipeline
    kv_bytes = held(text.cache) + text.recorder.index_bytes
    written = model.tokenizer.decode(text.new, skip_special_tokens=True)
    record = Words.of(model, [*asked.ids, *text.new[:-1]]).record(len(asked.ids), written, asked.n_prefill)
    trace = draft(text.recorder, pipeline, reference, record, how, kv_bytes, text.offload)
    hidden, began = torch.cat(text.states), time.perf_counter() - seconds
    trace = complete(model, trace, hidden, dense, began, seconds, share, progress, masks=text.recorder.masks)
    return Generation(written, text.new, trace, kv_bytes, trace.kv_bytes_dense)


def _check_lengths(model: Model, asked: _Asked, seed: int, max_new_tokens: int, temperature: float) -> int:
    """How many tokens the model reads in all: the last new one is never an input. Raises ValueError where it cannot."""
    pipeline, ids = asked.pipeline, asked.ids
    pipeline.check(generates=True)
    if whole("max_new_tokens", max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens is at least 1; got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is 0 or more; got {temperature}")
    check_run(model, ids, seed, extra=max_new_tokens)
    total = len(ids) + max_new_tokens - 1
    model.check_steps(asked.n_prefill, total, drops=pipeline.gate is not None or pipeline.eviction is not None)
    return total


def _prefilled(ids: list[int], asked: int | None) -> int:
    """How many tokens of the prompt are read at once. Raises ValueError for none of them, and for more than there are."""
    if asked is None:
        return len(ids)
    if not 1 <= whole("n_prefill", asked) <= max(1, len(ids)):  # an empty prompt has a sentence of its own
        raise ValueError(f"n_prefill is 1 to {len(ids)}, the tokens of the prompt; got {asked}")
    return whole("n_prefill", asked)


def _tell(progress: Progress, read: float, step: float, most: int, n: int) -> None:
    progress(step * (read + n - 1), f"token {n} of {most}")


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


def _eos_ids(model: Model) -> set[int]:
    configured = getattr(model.hf.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*ids, getattr(model.tokenizer, "eos_token_id", None)] if i is not None}
