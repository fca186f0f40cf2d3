"""Models of random weights at real sizes, made on the device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu_check.finding import Place
from sparsity_core.models import Model
from sparsity_core.models.loading import wrap
from tests import tiny

_LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(place: Place, n_layers: int, positions: int) -> Model:
    """A Llama with layers of Llama-3-8B's size (toy: of the tests' size) and the tests' vocabulary of bytes."""
    config = LlamaConfig(
        **(_SMALL if place.toy else _LLAMA_3_8B),
        num_hidden_layers=n_layers,
        max_position_embeddings=positions,
        vocab_size=258,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=None,
        eos_token_id=tiny.END,
        pad_token_id=tiny.PAD,
    )
    torch.manual_seed(0)
    with place.device:
        hf = AutoModelForCausalLM.from_config(config, dtype=place.half, attn_implementation="sdpa")
    return wrap(hf, tiny.tokenizer(), f"random-llama-{n_layers}")
