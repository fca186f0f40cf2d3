"""The feed-forward block of every family, seen as neurons: a row of gate and up, and the same column of down."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsity_core.models import FeedForwardNames, Model, ModelError, all_finite, decoder_layers


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One layer's block, n neurons over d channels. The tensors are views of the model's own weights."""

    layer: int
    gate: torch.Tensor | None  # [n, d]; None where the block has two matrices
    up: torch.Tensor  # [n, d]
    down: torch.Tensor  # [d, n]

    @property
    def first(self) -> torch.Tensor:
        """[n, d]: the matrix whose rows are pruned and whose spectrum is the reward, gate or the only one."""
        return self.up if self.gate is None else self.gate

    @property
    def n_neurons(self) -> int:
        return self.up.shape[0]

    @property
    def matrices(self) -> dict[str, torch.Tensor]:
        """Each matrix with its neurons as rows [n, d]: gate (where there is one), up, and down transposed."""
        named = {"gate": self.gate, "up": self.up, "down": self.down.T}
        return {name: weight for name, weight in named.items() if weight is not None}


@dataclass(frozen=True)
class NeuronCut:
    """What stays of one layer: its neurons, and what the mean activation of the others leaves in down's bias."""

    kept: torch.Tensor  # int64 [n_kept], ascending
    bias: torch.Tensor | None = None  # [d], added to down's bias


def feed_forwards(model: Model) -> list[FeedForward]:
    """The block of each layer. Raises ModelError for a model without one of the known layouts, or with damaged weights.

    Raises ValueError where the weights are codes, such as int8.
    """
    model.check_plain()
    blocks, names = [], _names(model)
    for index, layer in enumerate(model.layers):
        gate, up, down = _modules(layer, names)
        block = FeedForward(index, None if gate is None else weight_of(gate), weight_of(up), weight_of(down))
        if not all(map(all_finite, block.matrices.values())):
            raise ModelError(
                f"{model.name} has weights that are not finite in layer {index}: the checkpoint is damaged"
            )
        blocks.append(block)
    return blocks


def down_projections(model: Model) -> list[torch.nn.Module]:
    """The module of each layer that reads the neurons' activations [B, T, n]."""
    name = _names(model)[2]
    return [layer.get_submodule(name) for layer in model.layers]


def neuron_counts(model: Model) -> list[int]:
    """The neurons of each layer; empty for a model without one of the known layouts."""
    try:
        return [weight_of(module).shape[0] for module in up_projections(model)]
    except ModelError:
        return []


def up_projections(model: Model) -> list[torch.nn.Module]:
    """The module of each layer that reads the block's input [B, T, d], as the gate does."""
    name = _names(model)[1]
    return [layer.get_submodule(name) for layer in model.layers]


def shared_copy(hf: Any) -> Any:
    """A copy of a transformers model with modules of its own and the very same weights."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    return copy.deepcopy(hf, memo)


def without_neurons(model: Model, cuts: Sequence[NeuronCut]) -> tuple[Any, list[str]]:
    """A transformers model that shares every weight with `model` but its feed-forward blocks, and notes about it.

    Where layers keep different numbers, the narrower ones are filled with neurons of zeros, which change nothing.
    """
    hf = shared_copy(model.hf)
    widths = [len(cut.kept) for cut in cuts]
    width, notes = max(widths), []
    if min(widths) < width:
        notes.append(
            f"Layers keep {min(widths):,} to {width:,} neurons. One configuration has one width, so the narrower layers are "
            "filled with zeros: exact, but the saved size does not shrink by their share."
        )
    compensated = any(cut.bias is not None for cut in cuts)
    config, family, names = hf.config.get_text_config(), model.family, _names(model)
    if compensated and family.mlp_bias is not None:
        setattr(config, family.mlp_bias, True)
    biased = family.mlp_bias is not None and bool(getattr(config, family.mlp_bias))
    for layer, cut in zip(decoder_layers(hf, model.arch.n_layers), cuts, strict=True):
        gate, up, down = _modules(layer, names)
        for module in (gate, up):
            if module is not None:
                bias = None if module.bias is None else _filled(module.bias[cut.kept], width)
                set_weight(module, _filled(weight_of(module)[cut.kept], width), bias)
        bias = down.bias
        if cut.bias is not None and (bias is not None or biased):
            added = cut.bias.to(weight_of(down))
            bias = added if bias is None else bias + added
        set_weight(down, _filled(weight_of(down)[:, cut.kept].T, width).T, bias)
        if compensated and biased:
            for module in (gate, up, down):
                if module is not None and module.bias is None:
                    set_weight(module, weight_of(module), torch.zeros_like(weight_of(module)[:, 0]))
        if family.neuron_norm is not None:
            _cut_norm(layer.get_submodule(family.neuron_norm), cut.kept, width)
        mlp: Any = getattr(layer, "mlp", layer)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = width
    if compensated and down_projections(model)[0].bias is None and not biased:
        notes.append(f"{model.arch.family} models have no bias after the FFN, so the compensation could not be stored.")
    if family.width is None:
        raise ModelError(
            f"the configuration of {model.arch.family} has no number of neurons to change: choose another method"
        )
    setattr(config, family.width, width)
    return hf, notes


def with_matrices(model: Model, blocks: Sequence[FeedForward]) -> Any:
    """A transformers model that shares every weight with `model` but has these feed-forward weights, of unchanged shape."""
    hf, names = shared_copy(model.hf), _names(model)
    for layer, block in zip(decoder_layers(hf, model.arch.n_layers), blocks, strict=True):
        for name, weight in zip(names, (block.gate, block.up, block.down), strict=True):
            if name is not None and weight is not None:
                module: Any = layer.get_submodule(name)
                set_weight(module, weight, module.bias)
    return hf


def _names(model: Model) -> FeedForwardNames:
    """The names of gate, up and down in every layer. Raises ModelError where they are not known, or where a layer lacks them."""
    names = model.family.feed_forward
    if names is not None and all(
        {n for n in names if n} <= {n for n, _ in layer.named_modules()} for layer in model.layers
    ):
        return names
    raise ModelError(
        f"{model.name} ({model.arch.family}) has no feed-forward block that is known here: it needs gate, up and down "
        "projections, or two matrices, and no other weights among them"
    )


def _cut_norm(norm: Any, kept: torch.Tensor, width: int) -> None:
    """Cuts an RMS norm over n neurons to `kept`, so that it divides as if the others were zeros: weight · √(n / width)."""
    weight = norm.weight.detach()
    norm.weight = torch.nn.Parameter(_filled(weight[kept], width) * (len(weight) / width) ** 0.5, requires_grad=False)


def _modules(layer: torch.nn.Module, names: tuple[str | None, str, str]) -> list[Any]:
    return [None if name is None else layer.get_submodule(name) for name in names]


def _is_transposed(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2 stores [in, out]


def weight_of(module: Any) -> torch.Tensor:
    """[out, in], whatever the module stores."""
    return module.weight.detach().T if _is_transposed(module) else module.weight.detach()


def set_weight(module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Gives a linear module another weight [out, in] and bias [out], of any shape."""
    stored = weight.T if _is_transposed(module) else weight
    module.weight = torch.nn.Parameter(stored.contiguous(), requires_grad=False)
    module.bias = None if bias is None else torch.nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    if _is_transposed(module):
        module.nx, module.nf = stored.shape
    else:
        module.out_features, module.in_features = stored.shape


def _filled(rows: torch.Tensor, width: int) -> torch.Tensor:
    """`rows` with rows of zeros below, up to `width` of them."""
    return torch.nn.functional.pad(rows, (*(0, 0) * (rows.ndim - 1), 0, width - rows.shape[0]))
