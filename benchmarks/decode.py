"""One decode step: Double Sparsity against dense SDPA over the same cache, and what it moves against the bytes model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, ratio
from kernels import label_scores, quantise, sparse_decode

_RUNS = 11


def main(data: Path) -> list[Row]:
    if not torch.cuda.is_available():
        return [_step(1, 4096, (9, 3, 64), share, r, "cpu", torch.float32) for share, r in ((1 / 8, 16), (1 / 8, 32))]
    rows = []
    for batch in (1, 32):
        for n in (4096, 16384, 65536, 262144):
            if 2 * batch * 8 * n * 128 * 2 <= 0.4 * torch.cuda.mem_get_info()[0]:
                rows.append(_step(batch, n, (32, 8, 128), 1 / 16, 16, "cuda", torch.bfloat16))
    return rows


def _step(
    batch: int, n: int, heads: tuple[int, int, int], share: float, r: int, device: str, dtype: torch.dtype
) -> Row:
    """Labels of r channels rank the whole cache, and the best share of it is attended."""
    n_heads, n_kv, dim = heads
    torch.manual_seed(0)
    q = torch.randn(batch, n_heads, dim, device=device, dtype=dtype)
    k, v = (torch.randn(batch, n_kv, n, dim, device=device, dtype=dtype) for _ in range(2))
    labels, n_read = quantise(k[..., :r], "fp16"), int(share * n)

    def sparse(read: int = n_read) -> torch.Tensor:
        scores = label_scores(q[..., :r], labels, reduction="none", scale=dim**-0.5)
        together = torch.softmax(scores, -1).view(batch, n_kv, -1, n).sum(2)
        return sparse_decode(q, k, v, together.topk(read, sorted=False).indices)

    def dense() -> torch.Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]

    with torch.inference_mode():
        atol = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(sparse(n), dense(), atol=atol, rtol=atol)
        own, base, times = ratio(sparse, dense, runs=_RUNS, warmup=3)
    moved = batch * n_kv * (n * r * 2 + 2 * n_read * dim * k.element_size())
    note = f"{own * 1e6:.0f} µs against {base * 1e6:.0f} µs; {moved / own / 1e9:.0f} GB/s of the bytes model"
    name = f"decode step, {n} tokens, 1/{round(1 / share)} read, r = {r}, batch {batch}, {device}"
    row = Row(name, times, "", 1.0 if device == "cpu" else None, "dense SDPA", note)
    print(row, flush=True)
    return row
