"""A pipeline as the stages that the recorder walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sparsity_core.attention import (
    EvictionStage,
    GateStage,
    Offloaded,
    PrefillStage,
    ReadingStage,
    Recorder,
    Stages,
    ThinningStage,
    cuts_once,
    layer_rules,
)
from sparsity_core.inference.checks import whole
from sparsity_core.inference.words import Words
from sparsity_core.kinds import Pipeline, PrefillRule, ReadingMethod, ScanRule, ThinningMethod, least_of, ruled
from sparsity_core.models import Model
from sparsity_core.work import Progress, keeps, silent

_SNAPSHOT_ELEMENTS = 6_000_000  # of a trace's scores: 24 MB of float32


def snapshot_steps(model: Model, n: int, most: int) -> list[int]:
    """Evenly spaced queries, the last among them, so few that the scores stay below 24 MB."""
    room = _SNAPSHOT_ELEMENTS // max(1, model.arch.n_layers * model.arch.n_kv_heads * n)
    count = min(most, n, max(2, room))
    return sorted(set(np.linspace(n - 1, 0, count).round().astype(int).tolist())) if count else []


# By the model that it was cut from, with which it goes: one at most beside the shared model.
_pruned: WeakKeyDictionary[Model, tuple[str, Model]] = WeakKeyDictionary()


def pruned(model: Model, pipeline: Pipeline, progress: Progress = silent) -> Model:
    """The model after the pipeline's weights stage. The last one is kept, and returned again for the same model and method."""
    if pipeline.weights is None:
        return model
    model.check_plain()
    asked = "\n".join([str(pipeline.weights), *pipeline.weights.inputs().values()])
    spelled, found = _pruned.get(model, ("", model))
    if spelled != asked:
        release_pruned()  # before the next one is made: memory holds one
        found = pipeline.weights.compress(model, lambda share, doing: progress(0.0, doing)).model
        _pruned[model] = asked, found
    return found


def release_pruned() -> None:
    """Gives the memory of the pruned copy back, for work that makes a copy of its own."""
    _pruned.clear()


def _own_bytes() -> int:
    """What the pruned copy takes beside the weights that it shares with its model."""
    return sum(found.n_bytes(beside=model) for model, (_, found) in list(_pruned.items()))


keeps("a pruned copy of it", _own_bytes)


def recorder_for(
    reference: Model,
    pipeline: Pipeline,
    words: Words,
    *,
    n_tokens: int,
    n_prefill: int,
    first: int = 0,
    snapshot_steps: Sequence[int] = (),
    seed: int = 0,
    cache: Any = None,
    offload: Offloaded | None = None,
    only_layer: int | None = None,
    on_layer: Callable[[int], None] = lambda layer: None,
    progress: Progress = silent,
) -> Recorder:
    """The recorder of a pipeline over a text of `n_tokens`, of which `words` are known; its model has the weights pruned.

    Args:
        reference: the model that the pipeline starts from.
        n_prefill: tokens that a method of one cut reads densely before it.
        first: the first query that the decode stage lets choose what it reads.
        cache: a transformers DynamicCache that physically loses what is dropped; None simulates the drops in one forward.
        only_layer: the forward ends after this layer, whose scores alone are copied.

    Raises ValueError for a pipeline that does not fit the model or the text.
    """
    model = pruned(reference, pipeline)
    if model.shares_caches:
        if pipeline.gate is not None or pipeline.decode is not None:
            raise ValueError(
                f"layers of {model.name} share a cache: leave gate and decode out, or choose another model"
            )
        if pipeline.eviction is not None and pipeline.eviction.remembers:
            raise ValueError(f"layers of {model.name} share a cache: choose memory=none, or choose another model")
        only_layer = only_layer if only_layer is None else model.cached_in(only_layer)
    rules = layer_rules(model, pipeline.eviction, seed, words.ids[:n_prefill])
    protected, dropped = _rules(pipeline, words, n_tokens)
    if pipeline.eviction is not None and pipeline.eviction.protects_prompt:
        prompt = _prompt_protected(pipeline.eviction.name, rules, n_prefill, n_tokens)
        protected = prompt if protected is None else protected | prompt
    eviction = EvictionStage(
        model,
        rules,
        n_tokens=n_tokens,
        n_prefill=n_prefill,
        token_classes=[words.classes],
        snapshot_steps=snapshot_steps,
        only_layer=only_layer,
        protected=protected,
        splits=isinstance(pipeline.decode, ThinningMethod),
    )
    gate = gate_stage(reference, pipeline, protected=protected, dropped=dropped)
    reading = _reading_stage(model, pipeline, n_tokens, first, progress, offload)
    thinning = _thinning_stage(model, pipeline, n_prefill, cache)
    stages = Stages(eviction, gate, _prefill_stage(pipeline, words, seed), reading, thinning, dropped)
    return Recorder(model, stages, n_tokens=n_tokens, cache=cache, only_layer=only_layer, on_layer=on_layer)


def gate_stage(
    reference: Model,
    pipeline: Pipeline,
    *,
    protected: torch.Tensor | None = None,
    dropped: torch.Tensor | None = None,
) -> GateStage | None:
    """The pipeline's gate stage; None without one. Raises ValueError where no trained gate fits the model."""
    if pipeline.gate is None:
        return None
    gate = pipeline.gate.gate(reference)
    if gate.hidden_size != pruned(reference, pipeline).arch.hidden_size:
        raise ValueError(
            f"{pipeline.weights} changes the residual stream that the gate reads: leave one of the two out"
        )
    return GateStage(gate, pipeline.gate.drops_at, protected=protected, dropped=dropped)


def _prefill_stage(pipeline: Pipeline, words: Words, seed: int) -> PrefillStage | None:
    method, n_prompt = pipeline.prefill, len(words.ids)
    if method is None:
        return None
    method.check(n_prompt)
    return PrefillStage(
        method.masks(seed),
        words.texts,
        n_prompt=n_prompt,
        dense_layers=method.dense_layers,
        looks_ahead=method.looks_ahead,
    )


def _reading_stage(
    model: Model, pipeline: Pipeline, n_tokens: int, first: int, progress: Progress, offload: Offloaded | None
) -> ReadingStage | None:
    method = pipeline.decode
    if not isinstance(method, ReadingMethod):
        return None
    make = method.selectors(model, lambda share, doing: progress(0.0, doing))
    return ReadingStage(
        model,
        n_tokens,
        lambda layer: None if layer < method.first_layers else make(layer),
        method.tokens_of,
        first=first,
        dense_every=method.every,
        mean_value=method.corrects_mean,
        offload=offload,
    )


def _thinning_stage(model: Model, pipeline: Pipeline, n_prefill: int, cache: Any) -> ThinningStage | None:
    method = pipeline.decode
    if not isinstance(method, ThinningMethod):
        return None
    if any(layer.latent for layer in model.caches):
        raise ValueError(
            f"{model.name} caches what its keys are made from, which has no channels of theirs: leave {method.name} out"
        )
    return ThinningStage(method, n_prefill, cache)


def _rules(pipeline: Pipeline, words: Words, n: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(protected, dropped), bool [1, n] each: the tokens that the user's rules keep and drop; None without such rules."""
    methods = [method for method in (pipeline.gate, pipeline.eviction) if method is not None]

    def named(rules: list[str]) -> np.ndarray | None:
        found = [ruled(rule, words.texts, words.groups, n) for rule in rules if rule]
        return np.logical_or.reduce(found) if found else None

    protected, dropped = named([m.protect for m in methods]), named([m.drop for m in methods])
    if protected is not None and dropped is not None:
        dropped &= ~protected
    return tuple(None if each is None else torch.from_numpy(each)[None] for each in (protected, dropped))  # type: ignore[return-value]


def _prompt_protected(
    name: str, rules: Sequence[ScanRule | PrefillRule], n_prefill: int, n_tokens: int
) -> torch.Tensor:
    """bool [1, n_tokens]: the prompt's tokens. Raises ValueError where a layer's budget cannot hold them and the newest."""
    least = least_of(*(rule.budget for rule in rules))
    if least is not None and n_prefill + 1 > least:
        raise ValueError(
            f"{name}: protect_prompt keeps the prompt's {n_prefill:,} tokens, which with the newest token do not fit the "
            f"budget of {least:,}: raise the budget to {n_prefill + 1:,} or more, or shorten the prompt"
        )
    return torch.arange(n_tokens)[None] < n_prefill


def prefill_of(model: Model, pipeline: Pipeline, n: int, asked: int | None) -> int:
    """How many of n tokens a method of one cut reads densely, one that protects the prompt keeps, or one thins afterwards.

    Half where nothing is asked, so that the rest shows its cost.

    Raises ValueError for what is no number of tokens.
    """
    if asked is not None and whole("n_prefill", asked) < 0:
        raise ValueError(f"n_prefill is 0 or more tokens; got {asked}")
    protects = pipeline.eviction is not None and pipeline.eviction.protects_prompt
    thins = isinstance(pipeline.decode, ThinningMethod)
    if not protects and not thins and not cuts_once(layer_rules(model, pipeline.eviction)):
        return n
    return n // 2 if asked is None else whole("n_prefill", asked)
