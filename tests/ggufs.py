"""A tiny random Llama as a GGUF file, written by the gguf package as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, NEURONS = 259, 64, 2, 4, 2, 96


def write(path: Path, *, layers: int = LAYERS, seed: int = 0) -> Path:
    """Writes the file. `layers` is what its header says; it always holds two."""
    writer, drawn = GGUFWriter(path, "llama"), np.random.default_rng(seed)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list([*alphabet, "ab", "<s>", "</s>"])
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)

    def tensor(name: str, *shape: int) -> None:
        values = drawn.normal(0.0, 0.2, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))

    tensor("token_embd.weight", VOCABULARY, WIDTH)
    tensor("output_norm.weight", WIDTH)
    tensor("output.weight", VOCABULARY, WIDTH)
    narrow = WIDTH * KV_HEADS // HEADS
    for i in range(LAYERS):
        tensor(f"blk.{i}.attn_norm.weight", WIDTH)
        tensor(f"blk.{i}.ffn_norm.weight", WIDTH)
        for part, rows in (("attn_q", WIDTH), ("attn_k", narrow), ("attn_v", narrow), ("attn_output", WIDTH)):
            tensor(f"blk.{i}.{part}.weight", rows, WIDTH)
        tensor(f"blk.{i}.ffn_gate.weight", NEURONS, WIDTH)
        tensor(f"blk.{i}.ffn_up.weight", NEURONS, WIDTH)
        tensor(f"blk.{i}.ffn_down.weight", WIDTH, NEURONS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
