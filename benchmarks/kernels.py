"""The operations alone, at the shapes of the embedded model on the CPU and of a 7B-sized layer on CUDA."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from sparselens_kernels import evict_scan, flash_column_score

from benchmarks.measure import Row, ratio


def main(data: Path) -> list[Row]:
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    heads, kv_heads, dim = (32, 8, 128) if cuda else (9, 3, 64)
    rows = []
    for n in (1024, 2048, 4096):
        torch.manual_seed(n)
        q = torch.randn(1, heads, n, dim, device=device, dtype=dtype)
        k, v = (torch.randn(1, kv_heads, n, dim, device=device, dtype=dtype) for _ in range(2))

        def sdpa(q=q, k=k, v=v) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        with torch.inference_mode():
            _check(q, k, v, sdpa())
            for name, call in (
                ("flash_column_score", lambda q=q, k=k, v=v: flash_column_score(q, k, v)),
                ("evict_scan, budget 256", lambda q=q, k=k, v=v: evict_scan(q, k, v, budget=256, decay=0.3)),
                (
                    "evict_scan, sinks and window",
                    lambda q=q, k=k, v=v: evict_scan(q, k, v, budget=256, n_sink=4, recent=252, scored=False),
                ),
            ):
                own, base, times = ratio(call, sdpa)
                backend = call().backend
                note = f"{own * 1e3:.1f} ms against {base * 1e3:.1f} ms, {backend}, {device}, {heads}/{kv_heads}/{dim}"
                rows.append(Row(f"{name}, {n} tokens", times, "", None, "SDPA", note))
                print(rows[-1], flush=True)
    return rows


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, expected: torch.Tensor) -> None:
    """Both operations without eviction give the attention that they are measured against."""
    atol, rtol = (2e-5, 1e-4) if q.dtype == torch.float32 else (2e-2, 2e-2)
    torch.testing.assert_close(flash_column_score(q, k, v).out, expected, atol=atol, rtol=rtol)
    if q.shape[2] <= 1024:
        torch.testing.assert_close(evict_scan(q, k, v, budget=q.shape[2]).out, expected, atol=atol, rtol=rtol)
