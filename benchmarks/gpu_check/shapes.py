"""The operations at the sizes of real models, in each dtype, against the same operation's reference in float64 on the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from sparselens_kernels import (
    NEVER,
    BlockColumns,
    KeyMask,
    Window,
    evict_scan,
    flash_column_score,
    gate_drops,
    gated_attention,
    label_scores,
    masked_attention,
    quantise,
    sparse_decode,
)

from benchmarks.gpu_check.finding import Finding, Place, hold, off, tried

_HEADS = {"Llama-3-8B": (32, 8, 128), "SmolLM2-135M": (9, 3, 64), "Gemma-3-4B": (8, 4, 256), "Phi-3-mini": (32, 32, 96)}
_LIMIT = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of an output, of its norm
_SCORE = 1e-4  # of a score, which is float32 whatever the inputs are


def main(place: Place) -> Iterator[Finding]:
    models = {"toy": (4, 2, 16)} if place.toy else _HEADS
    dtypes = [torch.float32] if place.toy else list(_LIMIT)
    for model, heads in models.items():
        for dtype in dtypes:
            about = f"{model}, {str(dtype).removeprefix('torch.')}"
            case = _Case(place, heads, dtype)
            for name, check in case.checks():
                yield tried(f"{name}, {about}", check)
    yield tried("auto takes Triton on the card", partial(_auto, place))


class _Case:
    """Random inputs of one model's heads in one dtype; the same again in float64."""

    def __init__(self, place: Place, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.place, self.dtype = place, dtype
        n_heads, self.n_kv, self.dim = heads
        self.n = place.size(1500, 24)
        draw = torch.Generator(place.device).manual_seed(self.dim + n_heads)
        made = partial(torch.randn, device=place.device, generator=draw)
        self.q = made(1, n_heads, self.n, self.dim).to(dtype)
        self.k, self.v = (made(1, self.n_kv, self.n, self.dim).to(dtype) for _ in range(2))
        self.gate = [made(1, self.n, 64).to(dtype) / 4 for _ in range(2)]
        self.exact = [x.double() for x in (self.q, self.k, self.v)]

    def checks(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("label_scores", self.labels),
            ("sparse_decode", self.decode),
            ("flash_column_score", self.columns),
            ("evict_scan", self.scan),
            ("gated_attention", self.gated),
            ("masked_attention, the reference", self.masked),
        ]

    def labels(self) -> str:
        worst = 0.0
        for kind in ("fp16", "int8", "int4"):
            labels = quantise(self.k[..., :16], kind)
            q = self.q[:, :, -1, :16].contiguous()
            own, exact = (label_scores(q, labels, scale=0.25, backend=b) for b in ("triton", "reference"))
            worst = max(worst, off(own, exact))
        return hold(worst, _SCORE)

    def decode(self) -> str:
        index = torch.rand(1, self.n_kv, self.n, device=self.place.device).argsort(-1)[..., : self.n // 2]
        q, k, v = self.exact
        own = sparse_decode(self.q[:, :, -1], self.k, self.v, index, backend="triton")
        return hold(off(own, sparse_decode(q[:, :, -1], k, v, index, backend="reference")), _LIMIT[self.dtype])

    def columns(self) -> str:
        own = flash_column_score(self.q, self.k, self.v, decay=0.9, backend="triton")
        exact = flash_column_score(*self.exact, decay=0.9, backend="reference")
        return f"{hold(off(own.out, exact.out), _LIMIT[self.dtype])}; score {hold(off(own.score, exact.score), _SCORE)}"

    def scan(self) -> str:
        """Attention over what it kept itself is exact, each query past the budget drops one key; how often as in float64."""
        n, budget = min(self.n, self.place.size(700, 24)), self.place.size(256, 9)
        q, k, v = (x[:, :, :n] for x in (self.q, self.k, self.v))
        own = evict_scan(q, k, v, budget=budget, decay=0.3, backend="triton")
        exact = evict_scan(*(x[:, :, :n] for x in self.exact), budget=budget, decay=0.3, backend="reference")
        dropped = own.evicted_at[own.evicted_at != NEVER].view(self.n_kv, -1).sort(-1).values
        expected = torch.arange(budget + 1, n + 1, device=dropped.device, dtype=dropped.dtype).expand(self.n_kv, -1)
        if not torch.equal(dropped, expected):
            raise AssertionError("not every query past the budget dropped exactly one key")
        kept = flash_column_score(*(x.double() for x in (q, k, v)), until=own.evicted_at, backend="reference").out
        same = float((own.evicted_at == exact.evicted_at).float().mean())
        return f"{hold(off(own.out, kept), _LIMIT[self.dtype])}; {same:.2%} dropped when float64 drops them"

    def gated(self) -> str:
        q, k = self.gate
        own = gated_attention(self.q, self.k, self.v, q, k, bias=1.0, backend="triton")
        exact = gate_drops(q.double(), k.double(), bias=1.0, backend="reference")
        kept = flash_column_score(*self.exact, until=own.dropped_at[:, None], backend="reference").out
        same = float((own.dropped_at == exact).float().mean())
        return f"{hold(off(own.out, kept), _LIMIT[self.dtype])}; {same:.2%} dropped when float64 drops them"

    def masked(self) -> str:
        kept = torch.rand(self.n_kv, -(-self.n // 64), self.n, device=self.place.device) < 0.2
        mask = KeyMask([BlockColumns(kept, 64), Window(64)], self.n_kv, self.n)
        own, (q, k, v) = masked_attention(self.q, self.k, self.v, mask, backend="gathered").out, self.exact
        return hold(off(own, masked_attention(q, k, v, mask, backend="gathered").out), _LIMIT[self.dtype])


def _auto(place: Place) -> str:
    case = _Case(place, (4, 2, 64), place.half)
    taken = {
        "evict_scan": evict_scan(case.q, case.k, case.v, budget=8).backend,
        "flash_column_score": flash_column_score(case.q, case.k, case.v).backend,
        "gated_attention": gated_attention(case.q, case.k, case.v, *case.gate).backend,
    }
    wanted = "triton" if place.device.type == "cuda" else "reference"
    if set(taken.values()) != {wanted}:
        raise AssertionError(f"{taken}")
    return f"{wanted} in {', '.join(taken)}"
