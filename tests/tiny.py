"""Tiny random decoder models of the families that users bring, and a byte-level tokenizer, all made in memory."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sparsity_core.models.loading import wrap
from sparsity_core.models.model import Model

END, PAD = 256, 257
WINDOW = 8  # of the sliding-window layers: shorter than every test's text
MAX_POSITIONS = 320
TEXT = "The 12 cats sat on 3 mats, and Ann saw them all."

_COMMON = {
    "vocab_size": 258,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.2,  # at the usual 0.02 a random model attends everywhere alike, and hides what goes wrong
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
GROUPED = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
_GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"

CONFIGS: dict[str, Any] = {
    "llama": functools.partial(LlamaConfig, **GROUPED),
    "qwen2": functools.partial(Qwen2Config, **GROUPED),
    "qwen3": functools.partial(Qwen3Config, **GROUPED, head_dim=16),
    "mistral": functools.partial(MistralConfig, **GROUPED, sliding_window=WINDOW),
    "phi": functools.partial(PhiConfig, **_COMMON, intermediate_size=96, partial_rotary_factor=0.5),
    "gpt2": functools.partial(GPT2Config, **_COMMON),
    "opt": functools.partial(OPTConfig, **_COMMON, ffn_dim=96, word_embed_proj_dim=64),
    "gemma": functools.partial(GemmaConfig, **GROUPED, head_dim=16),
    "gemma2": functools.partial(
        Gemma2Config,
        **_GEMMA,
        sliding_window=WINDOW,
        layer_types=[_LOCAL, _GLOBAL, _LOCAL],
        attn_logit_softcapping=2.0,
        final_logit_softcapping=10.0,
    ),
    "gemma3": functools.partial(
        Gemma3TextConfig, **_GEMMA, sliding_window=WINDOW, layer_types=[_LOCAL, _GLOBAL, _LOCAL]
    ),
}
FAMILIES = tuple(CONFIGS)
WITHOUT_SDPA = ("gemma2",)  # transformers refuses it there, for the soft-capped logits


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, so that a character beyond ASCII takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")


def transformer(family: str, dtype: torch.dtype = torch.float64, attention: str = "eager") -> Any:
    """A transformers model of the family, with the same random weights at each call."""
    torch.manual_seed(7)
    hf = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32, attn_implementation=attention)
    hf.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        for module in hf.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = types.MethodType(_norm, module)
    return hf


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in float64: transformers' own goes through float32, which rounds each layer to 1e-7."""
    gemma = "Gemma" in type(self).__name__
    eps = self.eps if gemma else self.variance_epsilon
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (self.weight + gemma)


@functools.cache
def model(family: str = "llama", dtype: torch.dtype = torch.float64) -> Model:
    """The recorded model that all tests share: nothing may change it."""
    return wrap(transformer(family, dtype), tokenizer(), f"tiny-{family}")


def ids(n: int = 48, seed: int = 0) -> list[int]:
    """n random printable ASCII characters."""
    drawn = np.random.default_rng(seed).integers(0x20, 0x7F, n)
    return tokenizer()("".join(map(chr, drawn)))["input_ids"]


def layers(hf: Any) -> torch.nn.ModuleList:
    """The decoder layers, whatever the family calls them."""
    n = hf.config.num_hidden_layers
    return next(m for m in hf.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n)


@contextlib.contextmanager
def layer_outputs(hf: Any) -> Iterator[list[torch.Tensor]]:
    """Collects what each decoder layer puts out, and last what the normalised hidden states are, per forward."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        if hasattr(output, "last_hidden_state"):
            output = output.last_hidden_state
        seen.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handles = [m.register_forward_hook(keep) for m in (*layers(hf), hf.base_model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def hidden_states(hf: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the normalised last hidden states [T, hidden] of each forward."""
    seen: list[torch.Tensor] = []
    handle = hf.base_model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def plain_attention(hf: Any, keeps: list[np.ndarray] | None = None, remembers: bool = False) -> Iterator[None]:
    """The model's eager attention as one float64 softmax over the whole square, under extra masks [Hkv, T, T] a layer.

    Where it `remembers`, each query sees the mean of the keys that its mask takes from it too, as so many keys.
    """

    def attend(
        module: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor,
        scaling: float = 0.0,
        **own: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k.repeat_interleave(group, 1)) * (scaling or q.shape[-1] ** -0.5)
        if own.get("softcap") is not None:
            scores = own["softcap"] * torch.tanh(scores / own["softcap"])
        scores = scores + mask
        if keeps is not None:
            kept = torch.from_numpy(keeps[module.layer_idx]).repeat_interleave(group, 0)
            scores = scores.masked_fill(~kept, float("-inf"))
        k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
        if remembers:
            gone = (~kept).double().tril()
            n = gone.sum(-1)  # [H, q]
            mean_k, mean_v = (gone @ x / n.clamp_min(1)[..., None] for x in (k, v))
            memory = (q * mean_k).sum(-1) * (scaling or q.shape[-1] ** -0.5) + n.log()
            p = torch.cat([scores, memory[..., None]], -1).softmax(-1)
            out = (p[..., :-1] @ v + p[..., -1:] * mean_v).transpose(1, 2)
        else:
            p = scores.double().softmax(-1)
            out = torch.einsum("bhqk,bhkd->bqhd", p, v)
        return out.to(q.dtype).contiguous(), p

    modeling = sys.modules[type(hf).__module__]
    original = modeling.eager_attention_forward
    modeling.eager_attention_forward = attend
    try:
        yield
    finally:
        modeling.eager_attention_forward = original


def nll(logits: torch.Tensor, tokens: list[int]) -> np.ndarray:
    """float64 [T − 1]: −log p of each next token, from logits [T, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:]), reduction="none").numpy()
