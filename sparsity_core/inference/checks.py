"""What a run may be asked for."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model


def whole(name: str, value: Any) -> int:
    """A whole number of Python, NumPy or torch as Python's. Raises ValueError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is a whole number; got {value!r}") from None


def ids_of(model: Model, prompt: Any, add_bos: str = "auto") -> list[int]:
    """A text's token ids, with or without a start token (see `Model.encode`), or those given.

    Raises ValueError for what is neither.
    """
    if isinstance(prompt, str):
        return model.encode(prompt, add_bos)
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


def check_run(model: Model, ids: Sequence[int], seed: int, extra: int = 0) -> None:
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


def one_at_a_time(model: Model, pipelines: Sequence[Pipeline], *, caches: bool) -> str:
    """Why texts of these pipelines do not share a forward; empty where they do. `caches`: tokens are generated from caches."""
    if len({str(each.weights) for each in pipelines}) > 1:
        return "the pipelines of a batch have one weights stage"
    if model.changes_with_length:
        return f"the rotary frequencies of {model.name} depend on the length of its text"
    if caches and (model.shares_caches or any(layer.latent for layer in model.caches)):
        return f"the cache of {model.name} holds more than each layer's keys and values"
    if caches and any(getattr(each.decode, "keeps_cache_on_host", False) for each in pipelines):
        return "an offloaded cache is of one text"
    return ""
