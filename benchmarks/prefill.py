"""The prefill stage: attention over gathered keys against causal SDPA, its memory, and what each causal pattern costs.

Perplexities are compared at equal FLOPs: each pattern's width is the one whose attention, its scoring counted, comes nearest
to the target on the first block of text. `SPARSELENS_BLOCKS` says how many blocks are read (4 where it is not set).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sparselens_kernels import KeyMask, Window, masked_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import Row, peak_memory, ratio
from sparsity_core import Pipeline, load, methods, run
from sparsity_core.kinds import PrefillMethod, PromptView
from sparsity_core.models import AttentionCall, Enough, Model, recording
from sparsity_core.record import Trace

_TOKENS, _BLOCK, _TARGET = 4096, 1024, 0.30  # of dense attention's FLOPs
_DENSITY = 0.25  # of the causal pairs, at which ASSA's time and FLOPs are measured
_RATIOS = tuple(round(0.01 * i, 2) for i in range(2, 31))
_PATTERNS = {  # and the widths among which the one of equal FLOPs is looked for
    "sliding_window(window={})": range(64, 420, 8),
    "longformer(window={}, n_global=16)": range(64, 420, 8),
    "bigbird(window_blocks=1, random_blocks=1, block={})": range(16, 160, 4),
    "bigbird(window_blocks=2, random_blocks=0, block={})": range(16, 160, 4),
    "strided(stride={})": range(16, 420, 8),
    "lsh(buckets={}, rounds=1, window=64)": range(4, 128, 2),
    "assa(max_ratio={}, min_ratio=0.02)": _RATIOS,
} | {
    f"assa(max_ratio={{}}, min_ratio=0.02, {more})": _RATIOS
    for more in (
        "block=64",
        "window=32",
        "window=128",
        "probes=4",
        "probes=16",
        "coverage=0.8",
        "segment=block",
        "samplers=union",
        "samplers=vote",
        "hierarchical=True",
        "rescored=1",
        "repeated=newest",
        "repeated=mean",
        "compensation=mean",
        "compensation=low_rank",
    )
}


def main(data: Path) -> list[Row]:
    path = data / "wikitext-2-raw-test.txt"
    if not path.is_file():
        print(f"SKIPPED: there is no {path}; name the folder that holds it with --data")
        return []
    text, model = path.read_text(), load()
    ids = model.encode_all(text)
    rows = [*_speed(model, ids[:_TOKENS]), *_flops(model, ids[:2048]), *_memory(model, ids[:8192])]
    del model
    return [*rows, *perplexities(ids)]


def perplexities(ids: list[int]) -> list[Row]:
    """Of the dense model and of every pattern at equal FLOPs, a process for each core."""
    blocks = [ids[i * _BLOCK : (i + 1) * _BLOCK] for i in range(int(os.environ.get("SPARSELENS_BLOCKS", "4")))]
    note = f"WikiText-2 test, first {len(blocks)} blocks of {_BLOCK:,} tokens, no BOS"
    widths = [list(each) for each in _PATTERNS.values()]
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        dense = pool.submit(_dense, blocks, note)
        found = pool.map(_measured, _PATTERNS, widths, [blocks] * len(_PATTERNS))
        return [_said(dense.result()), *(_said(row) for row in found)]


def _dense(blocks: list[list[int]], note: str) -> Row:
    return Row("dense", _perplexity(load(), blocks, "dense")[0], "perplexity", None, "", note)


def _speed(model: Model, ids: list[int]) -> list[Row]:
    """Real queries, keys and values of three layers, and in each ASSA at a density of a quarter."""
    seen: dict[int, AttentionCall] = {}
    wanted = [model.arch.n_layers * part // 6 for part in (1, 3, 5)]

    class Keep:
        def attend(self, call: AttentionCall) -> torch.Tensor:
            seen[call.layer] = call
            if call.layer == wanted[-1]:
                raise Enough
            return scaled_dot_product_attention(call.q, call.k, call.v, is_causal=True, enable_gqa=True)

    with torch.inference_mode():
        with contextlib.suppress(Enough), recording(Keep()):
            model.hidden(torch.tensor([ids]), use_cache=False)
        texts = tuple(model.tokenizer.decode([i]) for i in ids)
        rows = []
        for layer in wanted:
            rows += _speed_of(seen[layer], texts)
    return rows


def _speed_of(call: AttentionCall, texts: tuple[str, ...]) -> list[Row]:
    q, k, v = call.q.contiguous(), call.k.contiguous(), call.v.contiguous()
    view = PromptView(call.layer, q[0], k[0], v[0], call.scale, texts)
    causal = len(texts) * (len(texts) + 1) / 2

    def density_of(mask: KeyMask) -> float:
        return _shown(mask) / mask.lists / causal

    method = _assa(_nearest(_RATIOS, lambda ratio: density_of(_assa(ratio).mask(view)), _DENSITY))
    mask = method.mask(view)
    whole = KeyMask([Window(len(texts))], k.shape[1], len(texts))
    plain = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(masked_attention(q, k, v, whole).out, plain, rtol=1e-3, atol=1e-4)
    density = density_of(mask)
    spent = (masked_attention(q, k, v, mask).pairs * 4 * q.shape[3] + mask.scoring_flops) / (
        q.shape[1] * causal * 4 * q.shape[3]
    )
    dense = lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
    _, base, attention = ratio(lambda: masked_attention(q, k, v, mask), dense)
    _, _, both = ratio(lambda: masked_attention(q, k, v, method.mask(view)), dense)
    note = f"layer {call.layer}, {len(texts):,} tokens, SDPA {1000 * base:.0f} ms"
    name = f"ASSA, density {density:.3f}"
    return [
        _said(Row(f"{name}: attention", attention, "", 0.5, "causal SDPA", note)),
        _said(Row(f"{name}: attention and scoring", both, "", None, "causal SDPA", note)),
        _said(Row(f"{name}: FLOPs with scoring", spent, "", None, "causal attention", note)),
    ]


def _flops(model: Model, ids: list[int]) -> list[Row]:
    """Of a whole run, at a density of a quarter."""

    def spends(max_ratio: float) -> tuple[float, float]:
        trace = run(model, ids, Pipeline(prefill=_assa(max_ratio)), snapshots=0, against_dense=False)
        return _density(trace), _spent(model, trace)

    density, spent = spends(_nearest(_RATIOS, lambda r: spends(r)[0], _DENSITY))
    name = f"ASSA, density {density:.3f}, a run of {len(ids):,} tokens: FLOPs with scoring"
    return [_said(Row(name, spent, "", 0.3, "causal attention"))]


def _assa(max_ratio: float) -> PrefillMethod:
    return methods.ASSA(max_ratio=max_ratio, min_ratio=_RATIOS[0])


def _nearest(values: Sequence[float], measure: Callable[[float], float], target: float) -> float:
    """Of ascending values the one whose measure, which rises or falls along them, is nearest to the target."""
    low, high = 0, len(values) - 1
    rises = measure(values[high]) > measure(values[low])
    while high - low > 1:
        middle = (low + high) // 2
        if (measure(values[middle]) < target) == rises:
            low = middle
        else:
            high = middle
    return min((values[low], values[high]), key=lambda each: abs(measure(each) - target))


def _shown(mask: KeyMask) -> int:
    key, total = torch.arange(mask.n_tokens), 0
    for start in range(0, mask.n_tokens, 256):
        rows = mask.rows(start, min(mask.n_tokens, start + 256), key[: start + 256])
        total += int(rows.expand(mask.lists, -1, -1).sum())
    return total


def _memory(model: Model, ids: list[int]) -> list[Row]:
    """Of a run at 8,192 tokens beside the plain forward."""
    if len(ids) < 8192 or torch.cuda.is_available():
        return []
    with torch.inference_mode():
        plain = peak_memory(lambda: model.hidden(torch.tensor([ids]), use_cache=False))
        sparse = peak_memory(lambda: run(model, ids, "prefill=assa", snapshots=0, against_dense=False))
    return [
        _said(Row("prefill run of 8,192 tokens, memory beyond the plain forward", (sparse - plain) / 2**20, "MiB", 400))
    ]


def _measured(pattern: str, widths: list[float], blocks: list[list[int]]) -> Row:
    model = load()

    def flops(width: float) -> float:
        return _spent(
            model, run(model, blocks[0], f"prefill={pattern.format(width)}", snapshots=0, against_dense=False)
        )

    width = _nearest(widths, flops, _TARGET)
    found, density, spent = _perplexity(model, blocks, f"prefill={pattern.format(width)}")
    note = f"{len(blocks)} blocks; pairs seen {density:.3f}, attention FLOPs with scoring {spent:.3f} of dense"
    return Row(pattern.format(width), found, "perplexity", None, "", note)


def _perplexity(model: Model, blocks: list[list[int]], pipeline: str) -> tuple[float, float, float]:
    """(perplexity; share of the causal pairs that are seen; FLOPs of attention and of finding the masks, of dense)."""
    losses, density, flops = [], [], []
    for block in blocks:
        trace = run(model, block, pipeline, snapshots=0, against_dense=False)
        losses.append(trace.nll[:-1])
        if trace.prefill is not None:
            density.append(_density(trace))
            flops.append(_spent(model, trace))
    found = float(np.exp(np.concatenate(losses).astype(np.float64).mean()))
    return found, float(np.mean(density or [1.0])), float(np.mean(flops or [1.0]))


def _density(trace: Trace) -> float:
    """The share of the causal pairs that are seen."""
    assert trace.prefill is not None
    return float(trace.prefill.shown.sum(-1).mean()) / (trace.n_tokens * (trace.n_tokens + 1) / 2)


def _spent(model: Model, trace: Trace) -> float:
    """FLOPs of attention and of finding the masks, of dense causal attention's."""
    assert trace.prefill is not None
    per_pair, n = 4 * model.arch.head_dim, trace.n_tokens
    spent = trace.prefill.pairs * per_pair + trace.prefill.scoring_flops
    return float(spent.mean()) / (model.arch.n_heads * n * (n + 1) / 2 * per_pair)


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row
