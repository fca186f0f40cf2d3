"""Dynamic context pruning's gate: the sparse sigmoid, how keeps accumulate, and the adapter that holds a trained one.

    x[n, k] = (W_q h_n · W_k h_k) / √r + β                 h: what the attention block reads, after its norm
    log I[n, k] = Σ_{m = k+1 … n} log σ_a(x[m, k])         added to the attention logits of every head; I[n, n] = 1

σ_a is the two-class a-entmax. At inference a = ∞: query n drops key k, for good, where x[n, k] ≤ 0. Source: Anagnostidis
et al., arXiv:2305.15805.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsity_core.methods.gate.dcp.records import family
from sparsity_core.record import PROGRAM
from sparsity_core.work import read_trained, write_trained

if TYPE_CHECKING:
    from sparsity_core.models import Model


FORMAT = 1
_NAMES = ("query", "key", "bias")


@dataclass(frozen=True, eq=False)
class Gate:
    """The interaction weights of every layer, of rank r: O(L · r · hidden) numbers beside the model's own."""

    query: torch.Tensor  # [L, r, hidden]
    key: torch.Tensor  # [L, r, hidden]
    bias: torch.Tensor  # [L]
    propagate_in_depth: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)  # plain JSON values

    @property
    def rank(self) -> int:
        return self.query.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.query.shape[2]

    def project(self, layer: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(W_q h / √r, W_k h), [B, T, r] each, of what a layer's attention reads [B, T, hidden]."""
        q = torch.nn.functional.linear(hidden, self.query[layer].to(hidden.device, hidden.dtype))
        k = torch.nn.functional.linear(hidden, self.key[layer].to(hidden.device, hidden.dtype))
        return q * self.rank**-0.5, k

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.key, self.bias

    def digest(self) -> str:
        """Names these weights in a recipe."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self.tensors():
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, model: Model) -> None:
        """Raises ValueError where this gate was trained on another model."""
        shape = (model.arch.n_layers, model.arch.hidden_size)
        own = (self.query.shape[0], self.query.shape[2])
        # The fingerprint is of the weights as they were trained on, most often float32; rounded ones have another.
        rounded = self.recipe.get("model") == model.name and model.dtype.itemsize < 4
        same = self.recipe.get("fingerprint") == model.fingerprint or rounded
        if own != shape or not same:
            raise ValueError(
                f"this gate was trained on {self.recipe.get('model')} ({own[0]} layers over {own[1]:,} channels), not on "
                f"{model.name} ({shape[0]} over {shape[1]:,}): train one for this model"
            )

    def save(self, path: str | Path) -> Path:
        """Writes <path>.safetensors, in float16, and <path>.json. Raises OSError where the folder cannot be written."""
        path = Path(path).with_suffix(".safetensors")
        halves = {name: tensor.half() for name, tensor in zip(_NAMES, self.tensors(), strict=True)}
        write_trained(path, halves, {"format": FORMAT, "propagate_in_depth": self.propagate_in_depth, **self.recipe})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Gate:
        """Reads what `save` wrote. Raises ValueError, with the next step, where a file is missing, damaged or changed."""
        path = Path(path).with_suffix(".safetensors")
        tensors, recipe = read_trained(path, "gate", FORMAT)
        try:
            query, key, bias = (tensors[name].float() for name in _NAMES)
            gate = cls(query, key, bias, bool(recipe["propagate_in_depth"]), recipe)
            sound = query.ndim == 3 and query.shape == key.shape and bias.shape == query.shape[:1]
            if not sound or not all(bool(t.isfinite().all()) for t in gate.tensors()):
                raise KeyError("weights")
        except KeyError:
            raise ValueError(f"{path} does not hold a gate: train it again, or give another file") from None
        return gate


def find_gate(model: Model, adapter: str, gamma: float) -> Gate:
    """The gate of a file; or for "auto" the one of the nearest γ that ships for this model. Raises ValueError without one."""
    if adapter != "auto":
        gate = Gate.load(os.path.expanduser(adapter))
    else:
        shipped = family()
        if not shipped:
            raise ValueError(f"no gates ship with this version: train one with `{PROGRAM} train dcp`")
        gate = Gate.load(shipped[min(shipped, key=lambda known: abs(known - gamma))])
    gate.check(model)
    return gate
