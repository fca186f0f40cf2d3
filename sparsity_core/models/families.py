"""What must be known of a family of models beyond what its modules tell: one record a family.

To add a family, add its record to `FAMILIES`. A family without one is recorded all the same, and its weights are cut where
its layers have the parts of a family that is listed; what depends on its code alone (`rotated_by_halves` and on) is off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from sparsity_core.models.refusals import ModelError
from sparsity_core.models.seam import backbone

FeedForwardNames = tuple[str | None, str, str]  # gate (None where the block has two matrices), up, down
AttentionNames = tuple[str, str, str, str]  # query, key, value, output; one name thrice where a matrix holds all three

_GATED: FeedForwardNames = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_UP_DOWN: FeedForwardNames = (None, "mlp.up_proj", "mlp.down_proj")
_FC: FeedForwardNames = (None, "mlp.fc1", "mlp.fc2")
_QKVO: AttentionNames = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@dataclass(frozen=True)
class Family:
    """Names are paths within a decoder layer, or keys of the configuration; None where the family has no such part."""

    feed_forward: FeedForwardNames | None = None
    attention: AttentionNames | None = None
    norm: str | None = None  # what attention reads through
    ffn_norm: str | None = None  # what the feed-forward block reads through
    neuron_norm: str | None = None  # a norm over the neurons, which is cut with them
    width: str | None = "intermediate_size"  # the key for the number of neurons
    mlp_bias: str | None = None  # the key that gives every matrix of the feed-forward block a bias
    rotated_by_halves: bool = False  # rotary in every layer, channel i turned with channel i + D/2
    any_heads: bool = False  # takes head_dim from the configuration, so the heads need not fill the hidden size
    plain_stream: bool = False  # the residual stream is read through RMS norms alone, and written by matrices alone


_LLAMA = Family(
    feed_forward=_GATED,
    attention=_QKVO,
    norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
    rotated_by_halves=True,
)
_TURNED = replace(_LLAMA, any_heads=True, plain_stream=True)
_GEMMA = replace(_LLAMA, any_heads=True)
_NOT_ROTARY = replace(_LLAMA, rotated_by_halves=False)

FAMILIES: dict[str, Family] = {
    "arcee": replace(_LLAMA, feed_forward=_UP_DOWN, mlp_bias="mlp_bias"),
    "bitnet": replace(_LLAMA, neuron_norm="mlp.ffn_sub_norm"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": replace(_GEMMA, rotated_by_halves=False),
    "gpt2": Family(
        feed_forward=(None, "mlp.c_fc", "mlp.c_proj"),
        attention=("attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj"),
        norm="ln_1",
        ffn_norm="ln_2",
        width="n_inner",
    ),
    "gpt_neox": Family(
        feed_forward=(None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), norm="input_layernorm", rotated_by_halves=True
    ),
    "granite": replace(_NOT_ROTARY, mlp_bias="mlp_bias"),
    "internlm3": replace(_NOT_ROTARY),
    "llama": replace(_TURNED, mlp_bias="mlp_bias"),
    "mistral": _TURNED,
    "mixtral": replace(_LLAMA, feed_forward=None),
    "nemotron": replace(_NOT_ROTARY, feed_forward=_UP_DOWN, mlp_bias="mlp_bias"),
    "olmo": _LLAMA,
    "olmo2": replace(_LLAMA, norm=None, ffn_norm=None),
    "opt": Family(
        feed_forward=(None, "fc1", "fc2"),
        attention=(*_QKVO[:3], "self_attn.out_proj"),
        norm="self_attn_layer_norm",
        ffn_norm="final_layer_norm",
        width="ffn_dim",
    ),
    "phi": Family(
        feed_forward=_FC,
        attention=(*_QKVO[:3], "self_attn.dense"),
        norm="input_layernorm",
        rotated_by_halves=True,
        any_heads=True,
    ),
    "phi3": replace(_LLAMA, feed_forward=None, attention=None),
    "qwen2": _TURNED,
    "qwen3": _TURNED,
    "smollm3": replace(_NOT_ROTARY, mlp_bias="mlp_bias"),
    "stablelm": _LLAMA,
    "starcoder2": replace(_LLAMA, feed_forward=(None, "mlp.c_fc", "mlp.c_proj")),
}


def decoder_layers(hf: Any, n_layers: int) -> torch.nn.ModuleList:
    """The decoder's layers, whatever the family calls them."""
    for module in backbone(hf).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise ModelError("the model has no list of decoder layers that could be pruned")


def family_of(name: str, layer: torch.nn.Module, config: Any) -> Family:
    """The record of a family; of one without a record, what one of its layers and its configuration tell."""
    if name in FAMILIES:
        return FAMILIES[name]
    within = {path for path, _ in layer.named_modules()}
    return Family(
        feed_forward=_known((f.feed_forward for f in FAMILIES.values()), within, layer),
        attention=_known((f.attention for f in FAMILIES.values()), within),
        norm=next((f.norm for f in FAMILIES.values() if f.norm in within), None),
        width=next((f.width for f in FAMILIES.values() if f.width and hasattr(config, f.width)), None),
    )


_Names = TypeVar("_Names", FeedForwardNames, AttentionNames)


def _known(names: Iterable[_Names | None], within: set[str], layer: torch.nn.Module | None = None) -> _Names | None:
    """The first of these whose parts are all there; given the layer, only where the block holds no other weights."""
    for parts in names:
        fits = parts is not None and {part for part in parts if part} <= within
        if parts is not None and fits and (layer is None or not _other_weights(layer, parts)):
            return parts
    return None


def _other_weights(layer: torch.nn.Module, parts: FeedForwardNames | AttentionNames) -> bool:
    """Whether the block of these parts holds weights beside theirs, whose meaning is not known."""
    block = parts[1].rpartition(".")[0]
    own = [f"{part}." for part in parts if part]
    inside = [name for name, _ in layer.named_parameters() if block and name.startswith(f"{block}.")]
    return any(not name.startswith(tuple(own)) for name in inside)
