"""The prefill stage: attention over gathered keys against causal SDPA, and what each causal pattern costs in perplexity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sparselens_kernels import BlockColumns, KeyMask, Window, masked_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import Row, ratio
from sparsity_core import load, run
from sparsity_core.models import Model

_TOKENS, _BLOCK, _BLOCKS = 4096, 1024, 2
_PATTERNS = (
    "sliding_window(window=160)",
    "longformer(window=144, n_global=16)",
    "bigbird(window_blocks=2, global_blocks=1, random_blocks=1)",
    "strided(stride=128)",
    "lsh(buckets=16, rounds=2, window=64)",
    "assa(max_ratio=0.1)",
    "assa(max_ratio=0.2)",
    "assa(max_ratio=0.1, segment=sentence)",
    "assa(max_ratio=0.1, coverage=0.8, min_ratio=0.02)",
)


def main(data: Path) -> list[Row]:
    rows = _speed()
    path = data / "wikitext-2-raw-test.txt"
    if not path.is_file():
        print(f"SKIPPED the perplexities: there is no {path}; name the folder that holds it with --data")
        return rows
    model = load()
    ids = model.encode_all(path.read_text())
    blocks = [ids[i * _BLOCK : (i + 1) * _BLOCK] for i in range(_BLOCKS)]
    note = f"WikiText-2 test, first {_BLOCKS} blocks of {_BLOCK:,} tokens, no BOS"
    rows.append(_said(Row("dense", _perplexity(model, blocks, "dense")[0], "perplexity", None, "", note)))
    for pattern in _PATTERNS:
        found, density, flops = _perplexity(model, blocks, f"prefill={pattern}")
        note = f"pairs seen {density:.3f}, attention FLOPs with scoring {flops:.3f} of dense"
        rows.append(_said(Row(pattern, found, "perplexity", None, "", note)))
    return rows


def _speed() -> list[Row]:
    """Real shapes of the embedded model: 9 query heads, 3 KV heads of 64 channels."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, _TOKENS, 64, generator=rng) for heads in (9, 3, 3))
    rows = []
    for density in (0.15, 0.25, 1.0):
        kept = torch.rand(3, _TOKENS // 64, _TOKENS, generator=rng) < density
        mask = KeyMask([BlockColumns(kept, 64), Window(64)], 3, _TOKENS)
        plain = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if density == 1.0:
            torch.testing.assert_close(masked_attention(q, k, v, mask).out, plain, rtol=1e-4, atol=1e-5)
        _, base, found = ratio(
            lambda mask=mask: masked_attention(q, k, v, mask),  # type: ignore[misc]
            lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        )
        limit = 0.5 if density == 0.25 else None
        note = f"{_TOKENS:,} tokens, SDPA {1000 * base:.0f} ms"
        rows.append(_said(Row(f"gathered attention, density {density:g}", found, "", limit, "causal SDPA", note)))
    return rows


def _perplexity(model: Model, blocks: list[list[int]], pipeline: str) -> tuple[float, float, float]:
    """(perplexity; share of the causal pairs that are seen; FLOPs of attention and of finding the masks, of dense)."""
    losses, density, flops = [], [], []
    for block in blocks:
        trace = run(model, block, pipeline, snapshots=0, against_dense=False)
        losses.append(trace.nll[:-1])
        if trace.prefill is not None:
            causal = len(block) * (len(block) + 1) / 2
            density.append(float(trace.prefill.shown.sum(-1).mean()) / causal)
            per_pair = 4 * model.arch.head_dim * model.arch.n_heads
            spent = trace.prefill.pairs / model.arch.n_heads * per_pair + trace.prefill.scoring_flops
            flops.append(float(spent.mean()) / (causal * per_pair))
    found = float(np.exp(np.concatenate(losses).astype(np.float64).mean()))
    return found, float(np.mean(density or [1.0])), float(np.mean(flops or [1.0]))


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row
