"""The residual stream in other axes: every matrix that reads or writes it is turned, and the model says the same.

    write: Qᵀ W, Qᵀ b          read after an RMS norm of weight γ: W diag(γ) Q √(d / d')

Q [d, d'] has orthonormal columns. With d' = d nothing changes, since an RMS norm without weight commutes with rotations;
the root makes up for its mean over fewer channels. Source: Ashkboos et al., arXiv:2401.15024, with one rotation for all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sparsity_core.kinds import WeightMethod
from sparsity_core.models import FAMILIES, Family, Model, ModelError, decoder_layers, wrap
from sparsity_core.weights import (
    CompressedModel,
    feed_forwards,
    kept_count,
    set_weight,
    shared_copy,
    stream_moment,
    weight_of,
)
from sparsity_core.work import Progress


def slice_stream(
    model: Model,
    method: WeightMethod,
    windows: Callable[[Model], torch.Tensor],
    progress: Progress,
    *,
    ratio: float,
    multiple: int,
) -> CompressedModel:
    """The model over fewer residual channels, by the principal axes on the calibration text of `windows`.

    Raises ModelError for a family whose stream cannot be turned.
    """
    began, width = time.perf_counter(), model.arch.hidden_size
    if not model.family.plain_stream:
        known = ", ".join(name for name, family in FAMILIES.items() if family.plain_stream)
        raise ModelError(
            f"{method.name} turns a residual stream that is read through RMS norms, as in {known}; "
            f"{model.name} is of the family {model.arch.family}: choose another method"
        )
    keep = width if ratio == 0.0 else kept_count(width, ratio, multiple, what="channels")
    notes: list[str] = []
    with torch.no_grad():
        if ratio == 0.0:
            hf = shared_copy(model.hf)
        else:
            moment = stream_moment(model, norms, windows(model), lambda s, d: progress(0.9 * s, d))
            hf = turned(model, torch.linalg.eigh(moment).eigenvectors[:, -keep:].flip(1))
            if bool(model.hf.config.get_text_config().tie_word_embeddings):
                notes.append(
                    f"The head was tied to the embeddings and holds the last norm's weight now: {hf.lm_head.weight.numel():,} "
                    "parameters of its own."
                )
    removed = sum(p.numel() for p in model.hf.parameters()) - sum(p.numel() for p in hf.parameters())
    extra = {
        "nominal_cut_of_ffn": 0.0,
        "nominal_cut_of_stream": ratio,
        "kept_channels": keep,
        "cut_of_ffn_by_layer": [round(1 - keep / width, 6)] * model.arch.n_layers,
    }
    compressed = wrap(hf, model.tokenizer, f"{model.name} {method}")
    neurons = tuple(np.arange(block.n_neurons) for block in feed_forwards(model))
    progress(1.0, "every layer is rotated")
    return CompressedModel(
        compressed, model, method, neurons, time.perf_counter() - began, tuple(notes), extra, removed
    )


def norms(model: Model) -> list[torch.nn.Module]:
    """Every RMS norm that reads the stream, in order."""
    names = _read(model.family)
    return [*(layer.get_submodule(name) for layer in model.layers for name in names), model.hf.base_model.norm]


def _read(family: Family) -> dict[str, tuple[str, ...]]:
    """Each norm of a layer, and the matrices behind it."""
    attention, feed_forward = family.attention or (), family.feed_forward or ()
    behind = {family.norm: attention[:3], family.ffn_norm: feed_forward[:2]}
    return {norm: tuple(name for name in names if name) for norm, names in behind.items() if norm}


def _write(family: Family) -> tuple[str, ...]:
    """The matrices of a layer that write into the stream."""
    return tuple(names[-1] for names in (family.attention, family.feed_forward) if names)


def turned(model: Model, q: torch.Tensor) -> Any:
    """A transformers model whose stream is Qᵀ x for q float64 [d, d']; it shares no weight that reads or writes it."""
    hf: Any = shared_copy(model.hf)
    config = hf.config.get_text_config()
    width, keep = q.shape
    spread = math.sqrt(width / keep)

    def read(module: Any, norm: Any) -> None:
        weight = weight_of(module).double() * norm.weight.double()
        set_weight(module, (spread * weight @ q.to(weight.device)).to(module.weight.dtype), module.bias)

    def write(module: Any) -> None:
        across = q.to(module.weight.device)
        bias = None if module.bias is None else (across.T @ module.bias.double()).to(module.bias.dtype)
        set_weight(module, (across.T @ weight_of(module).double()).to(module.weight.dtype), bias)

    def unweighted(norm: Any) -> None:
        norm.weight = torch.nn.Parameter(norm.weight.new_ones(keep), requires_grad=False)

    for layer in decoder_layers(hf, model.arch.n_layers):
        for name, behind in _read(model.family).items():
            norm = layer.get_submodule(name)
            for reader in behind:
                read(layer.get_submodule(reader), norm)
            unweighted(norm)
        for writer in _write(model.family):
            write(layer.get_submodule(writer))
    read(hf.lm_head, hf.base_model.norm)
    unweighted(hf.base_model.norm)
    embedding = hf.get_input_embeddings()
    rows = embedding.weight.double() @ q.to(embedding.weight.device)
    embedding.weight = torch.nn.Parameter(rows.to(embedding.weight.dtype), requires_grad=False)
    embedding.embedding_dim = keep
    config.hidden_size, config.head_dim, config.tie_word_embeddings = keep, model.arch.head_dim, False
    config.rms_norm_eps *= width / keep
    for module in hf.modules():
        if hasattr(module, "variance_epsilon"):  # those of queries and keys too, which have it from the configuration
            module.variance_epsilon = config.rms_norm_eps
        if hasattr(module, "hidden_size"):
            module.hidden_size = keep
    return hf
