"""A decode step's attention: Double Sparsity against dense SDPA over the same caches, each correct before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from sparselens_kernels import label_scores, sparse_decode
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.finding import (
    Finding,
    Measured,
    Place,
    copies,
    failed,
    hold,
    milliseconds,
    off,
    replayed,
    tried,
)
from sparsity_core.attention import decode_selected
from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector

_HEADS = (32, 8, 128)  # of Llama-3-8B
_CHANNELS = 16
_FREE = 0.45  # of the card's free memory that a case's keys and values may take: labelling copies the keys once


def main(place: Place) -> Iterator[Finding]:
    lengths = (64, 256) if place.toy else (4096, 16384, 65536, 262144)
    for batch in (1, place.size(32, 2)):
        for n in lengths:
            held = 2 * batch * _HEADS[1] * n * _HEADS[2] * place.half.itemsize
            about = f"{n:,} tokens, batch {batch}"
            if place.device.type == "cuda" and held > _FREE * torch.cuda.mem_get_info()[0]:
                free = torch.cuda.mem_get_info()[0] / 2**30
                yield Finding(
                    about, None, note=f"left out: {held / 2**30:.0f} GiB of keys and values, {free:.0f} GiB free"
                )
                continue
            with torch.inference_mode():
                try:
                    yield from _Caches(place, batch, n, about).findings()
                except Exception as error:
                    yield failed(about, error)
            if place.device.type == "cuda":
                torch.cuda.empty_cache()


class _Caches:
    """Several layers' caches of one length, so that no step finds its keys in the card's own cache."""

    def __init__(self, place: Place, batch: int, n: int, about: str) -> None:
        self.place, self.batch, self.n, self.about = place, batch, n, about
        n_heads, n_kv, dim = _HEADS
        torch.manual_seed(0)
        made = partial(torch.randn, device=place.device, dtype=place.half)
        self.q = made(batch, n_heads, 1, dim)
        self.held = 2 * batch * n_kv * n * dim * place.half.itemsize
        self.layers = []
        for _ in range(copies(self.held, place)):
            k, v = (made(batch, n_kv, n, dim) for _ in range(2))
            selector = LabelSelector(torch.arange(_CHANNELS, device=place.device).expand(n_kv, -1), "fp16", "softmax")
            selector.append(k)
            self.layers.append((k, v, selector))

    def findings(self) -> Iterator[Finding]:
        yield tried(f"all read is dense, {self.about}", self.whole)
        yield tried(f"1/8 read is exact over its selection, {self.about}", self.exact)
        dense = {}
        for name, call in self.dense().items():
            found = tried(f"dense, {name}, {self.about}", partial(self.timed, call, self.held, None))
            yield found
            if found.value is not None:
                dense[name] = found.value
        base = min(dense.items(), key=lambda item: item[1]) if dense else None
        for share in (8, 16):
            name = f"Double Sparsity, 1/{share} read, {self.about}"
            read = self.held / share + self.batch * _HEADS[1] * self.n * _CHANNELS * 2
            yield tried(name, partial(self.timed, partial(self.sparse, 1 / share), read, base))
        if self.batch == 1:
            for name, call in self.parts().items():
                yield tried(f"  its {name}, {self.about}", partial(self.timed, call, None, None))

    def sparse(self, share: float, k: torch.Tensor, v: torch.Tensor, selector: LabelSelector) -> torch.Tensor:
        return decode_selected(self.q, k, v, selector, share=share, scale=_HEADS[2] ** -0.5)[0]

    def dense(self) -> dict[str, Callable[..., torch.Tensor]]:
        def heads(k: torch.Tensor, v: torch.Tensor, selector: LabelSelector) -> torch.Tensor:
            return F.scaled_dot_product_attention(self.q, k, v, enable_gqa=True)

        def rows(k: torch.Tensor, v: torch.Tensor, selector: LabelSelector) -> torch.Tensor:
            grouped = self.q.view(self.batch, k.shape[1], -1, k.shape[3])
            return F.scaled_dot_product_attention(grouped, k, v).view_as(self.q)

        def cudnn(k: torch.Tensor, v: torch.Tensor, selector: LabelSelector) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return rows(k, v, selector)

        either = {"SDPA": heads, "SDPA, a KV head's queries as rows": rows}
        return either if self.place.toy else {**either, "cuDNN, a KV head's queries as rows": cudnn}

    def whole(self) -> str:
        k, v, selector = self.layers[0]
        expected = self.dense()["SDPA, a KV head's queries as rows"](k, v, selector)
        return hold(off(self.sparse(1.0, k, v, selector), expected), 1e-2)

    def exact(self) -> str:
        k, v, selector = self.layers[0]
        out, chosen = decode_selected(self.q, k, v, selector, share=1 / 8, scale=_HEADS[2] ** -0.5)
        row = slice(0, 1)
        q, k, v = (x[row].double() for x in (self.q[:, :, 0], k, v))
        expected = sparse_decode(q, k, v, chosen.columns[row], backend="reference")
        return hold(off(out[row, :, 0], expected), 1e-2)

    def timed(self, call: Callable[..., torch.Tensor], read: float | None, base: tuple[str, float] | None) -> Measured:
        """µs a layer within a CUDA graph, and launched one by one; against the fastest dense."""
        calls = [partial(call, *layer) for layer in self.layers]
        eager = 1e3 * milliseconds(lambda: [one() for one in calls], self.place, runs=10) / len(calls)
        said = [f"{eager:.0f} µs launched one by one"]
        try:
            own = 1e3 * replayed(calls, self.place)
        except RuntimeError as error:
            own = eager
            said = [f"launched one by one, as no CUDA graph holds it: {str(error).splitlines()[0][:80]}"]
        if read is not None:
            said.append(f"{read / own / 1e3:.0f} GB/s of the bytes model")
        if base is not None:
            said.append(f"{base[1] / own:.2f} times as fast as {base[0]}")
        return Measured(own, "µs", "; ".join(said))

    def parts(self) -> dict[str, Callable[..., torch.Tensor]]:
        """The steps of Double Sparsity, each on what the one before gives."""
        k, _, selector = self.layers[0]
        scale, n_read = _HEADS[2] ** -0.5, max(1, self.n // 8)
        scores = selector.scores(self.q, k, scale=scale)[:, :, :, 0].flatten(1, 2)
        columns = scores.topk(n_read, dim=-1, sorted=False).indices
        labels, q = selector._held(), self.q[:, :, 0, :_CHANNELS].contiguous()

        def attend(k: torch.Tensor, v: torch.Tensor, selector: LabelSelector) -> torch.Tensor:
            return sparse_decode(self.q[:, :, 0], k, v, columns, scale=scale)

        return {
            "label_scores alone": lambda k, v, s: label_scores(q, labels, reduction="none", scale=scale),
            "scores with their softmax": lambda k, v, s: s.scores(self.q, k, scale=scale),
            "topk": lambda k, v, s: scores.topk(n_read, dim=-1, sorted=False).indices,
            "sparse_decode of 1/8": attend,
        }
