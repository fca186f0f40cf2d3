"""A decode step's attention in every layer: Double Sparsity against dense SDPA over the same caches, and the bytes model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, ratio
from sparsity_core.attention import decode_selected
from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector

_RUNS = 21
_CPU_BYTES = 2e8  # of keys and values in all layers, so that a layer's are not in the processor's caches when it comes


def main(data: Path) -> list[Row]:
    if not torch.cuda.is_available():
        shape = (9, 3, 64)
        return [
            row for n in (4096, 16384) for r in (16, 32) for row in _step(1, n, shape, 1 / 8, r, "cpu", torch.float32)
        ]
    rows = []
    for batch in (1, 32):
        for n in (4096, 16384, 65536, 262144):
            if 2 * batch * 8 * n * 128 * 2 <= 0.4 * torch.cuda.mem_get_info()[0]:
                rows += _step(batch, n, (32, 8, 128), 1 / 16, 16, "cuda", torch.bfloat16)
    return rows


def _step(
    batch: int, n: int, heads: tuple[int, int, int], share: float, r: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """Labels of r channels rank the whole cache, and the best share of it is attended; per layer."""
    n_heads, n_kv, dim = heads
    torch.manual_seed(0)
    held = 2 * batch * n_kv * n * dim * dtype.itemsize
    n_layers = max(1, round(_CPU_BYTES / held)) if device == "cpu" else 1
    q = torch.randn(batch, n_heads, 1, dim, device=device, dtype=dtype)
    layers = []
    for _ in range(n_layers):
        k, v = (torch.randn(batch, n_kv, n, dim, device=device, dtype=dtype) for _ in range(2))
        selector = LabelSelector(torch.arange(r, device=device).expand(n_kv, -1), "fp16", "softmax")
        selector.append(k)
        layers.append((k, v, selector))

    def sparse(read: float = share) -> list[torch.Tensor]:
        return [decode_selected(q, k, v, s, share=read, scale=dim**-0.5)[0] for k, v, s in layers]

    def dense() -> list[torch.Tensor]:
        return [F.scaled_dot_product_attention(q, k, v, enable_gqa=True) for k, v, _ in layers]

    def grouped() -> list[torch.Tensor]:
        rows = q.view(batch, n_kv, -1, dim)
        return [F.scaled_dot_product_attention(rows, k, v).view_as(q) for k, v, _ in layers]

    with torch.inference_mode():
        atol = 1e-4 if dtype == torch.float32 else 2e-2
        for other in (sparse(1.0), grouped()):
            torch.testing.assert_close(other, dense(), atol=atol, rtol=atol)
        own, base, times = ratio(sparse, dense, runs=_RUNS, warmup=3)
        rows_own, _, rows_times = ratio(grouped, dense, runs=_RUNS, warmup=3)
    moved = n_layers * batch * n_kv * (n * r * 2 + 2 * share * n * dim * dtype.itemsize)
    name = f"{n} tokens, batch {batch}, {device}"
    rate = f"{moved / own / 1e9:.1f} GB/s of the bytes model"
    per = 1e6 / n_layers
    found = [
        Row(
            f"decode step, 1/{round(1 / share)} read, r = {r}, {name}",
            times,
            "",
            1.0 if device == "cpu" else None,
            "dense SDPA",
            f"{own * per:.0f} µs a layer against {base * per:.0f}; {rate}",
        ),
        Row(
            f"dense, a KV head's queries as rows, {name}",
            rows_times,
            "",
            None,
            "dense SDPA",
            f"{rows_own * per:.0f} µs a layer",
        ),
    ]
    print(*found, sep="\n", flush=True)
    return found
