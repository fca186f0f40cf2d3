"""Writes kept.npz: what kvpress's own presses keep of one prompt, for test_kvpress.py.

kvpress 0.5.5 needs transformers below 5.3, so this runs in an environment of its own:

    python -m venv kvpress-env && kvpress-env/bin/pip install kvpress==0.5.5
    kvpress-env/bin/python tests/methods/kvpress/make.py FOLDER

FOLDER is the embedded model's conversion, `python -m sparsity_core models` names it. Each press cuts a fresh cache after one
forward over the same tokens in float32; a kept key is found again by its bytes in the uncut cache.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from kvpress import (
    AdaKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    KVzipPress,
    PyramidKVPress,
    SnapKVPress,
    ThinKPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

HERE = Path(__file__).parent
TEXT = HERE.parents[2] / "sparsity_core/assets/texts/python-reference.txt.xz"
N = 256
PRESSES = {
    "snapkv": SnapKVPress(0.5, window_size=32, kernel_size=5),
    "knorm": KnormPress(0.5),
    "keydiff": KeyDiffPress(0.5),
    "expected_attention": ExpectedAttentionPress(0.5),
    "expected_attention_mean": ExpectedAttentionPress(
        0.75, n_future_positions=64, use_covariance=False, use_vnorm=False
    ),
    "pyramid_kv": PyramidKVPress(0.5, window_size=32, beta=128 / 36.8),
    "tova": TOVAPress(1 / N),
    "ada_kv": AdaKVPress(SnapKVPress(0.5, window_size=32, kernel_size=5), alpha_safeguard=0.2),
    "ada_kv_expected_attention": AdaKVPress(ExpectedAttentionPress(0.75, epsilon=0.01), alpha_safeguard=0.2),
    "kvzip": KVzipPress(0.5),
}


def main(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as plain
    ):  # without a chat template, of which KVzip would put parts into the prompt
        for file in folder.iterdir():
            if file.name != "chat_template.jinja":
                (Path(plain) / file.name).symlink_to(file.resolve())
        tokenizer = AutoTokenizer.from_pretrained(plain)
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="sdpa").eval()
        ids = tokenizer(lzma.decompress(TEXT.read_bytes()).decode()[:20_000])["input_ids"][:N]
        found = {"token_ids": np.asarray(ids, np.int32)}
        dense, _ = cut(model, tokenizer, ids, None)
        for name, press in PRESSES.items():
            cache, masked = cut(model, tokenizer, ids, press)
            kept = np.stack([held(a.keys[0], b.keys[0]) for a, b in zip(dense.layers, cache.layers, strict=True)])
            for layer, hidden in enumerate(masked):
                if hidden is not None:
                    kept[layer, hidden[1], hidden[2]] = False
            print(name, kept.sum((1, 2)).tolist())
            found[name] = np.packbits(kept, axis=-1)
        cache, _ = cut(model, tokenizer, ids, ThinKPress(0.5, window_size=32))
        found["think"] = np.stack([np.asarray((layer.keys[0] != 0).any(1)) for layer in cache.layers])
    np.savez_compressed(HERE / "kept.npz", **found)


@torch.inference_mode()
def cut(model, tokenizer, ids, press):
    """(the cache after the prompt, the (batch, head, key) indices that each layer's attention is to hide)."""
    cache = DynamicCache()
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    if press is None:
        model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    else:
        with press(model):
            if isinstance(press, KVzipPress):
                press._suffix_ids = tokenizer.encode("\n\n", return_tensors="pt", add_special_tokens=False)
            model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    return cache, [layer.self_attn.masked_key_indices for layer in model.model.layers]


def held(whole: torch.Tensor, left: torch.Tensor) -> np.ndarray:
    """bool [Hkv, T]: which of the keys `whole` [Hkv, T, D] are among those `left` [Hkv, n, D]."""
    return np.asarray((whole[:, :, None] == left[:, None]).all(-1).any(-1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
