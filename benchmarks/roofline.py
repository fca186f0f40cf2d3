"""`python -m benchmarks.roofline`: each kernel's least time on four cards, from its bytes and FLOPs, into docs/roofline.md.

The bytes and FLOPs are formulas, which `benchmarks.counted` holds against what the kernels do under the interpreter.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "roofline.md"
_BEGIN, _END = "<!-- written by python -m benchmarks.roofline -->", "<!-- end -->"
_HALF = 2  # bytes of float16 and bfloat16
_FLOAT = 4


@dataclass(frozen=True)
class Card:
    """What its maker publishes, without structured sparsity."""

    bandwidth: float  # bytes/s
    products: float  # FLOP/s of float16 on tensor cores
    vector: float  # FLOP/s of float32 without


CARDS = {
    "A100 80 GB SXM": Card(2.039e12, 312e12, 19.5e12),
    "H100 SXM": Card(3.35e12, 989.4e12, 66.9e12),
    "H200 SXM": Card(4.8e12, 989.4e12, 66.9e12),
    "MI300X": Card(5.3e12, 1307.4e12, 163.4e12),
}


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    dim: int
    tokens: int

    @property
    def queries(self) -> int:
        """Elements of a query of every head."""
        return self.batch * self.heads * self.dim

    @property
    def keys(self) -> int:
        """Rows of one token of every KV head."""
        return self.batch * self.kv_heads


@dataclass(frozen=True)
class Work:
    """What one call moves and computes."""

    memory: float  # bytes, each once per launch and direction
    products: float = 0.0  # FLOPs of tl.dot, its padding included
    vector: float = 0.0  # FLOPs of lanes

    def __add__(self, other: Work) -> Work:
        return Work(self.memory + other.memory, self.products + other.products, self.vector + other.vector)

    def seconds(self, card: Card) -> float:
        """No call can be faster: the longest of what memory, tensor cores and lanes take alone."""
        return max(self.memory / card.bandwidth, self.products / card.products, self.vector / card.vector)


def label_work(shape: Shape, *, channels: int, kind: str, softmax: bool = False) -> Work:
    """Scores from labels: per token and KV head the label's channels, the scale of integers, and the score in float32.

    With a softmax the labels are read twice, and each block of 256 tokens leaves its log-sum-exp for a merge.
    """
    label = channels * {"fp16": 2.0, "int8": 1.0, "int4": 0.5}[kind] + (0 if kind == "fp16" else 2)
    rows, heads = shape.keys * shape.tokens, shape.batch * shape.heads
    q = heads * channels * _FLOAT
    vector = 2 * heads * shape.tokens * (channels + 1)
    if not softmax:
        return Work(rows * (label + _FLOAT) + q, vector=vector)
    parts = heads * -(-shape.tokens // 256) * _FLOAT
    return Work(rows * (2 * label + _FLOAT) + 2 * (q + parts + heads * _FLOAT), vector=2 * vector)


def sparse_decode_work(shape: Shape, *, selected: int) -> Work:
    """Attention over `selected` keys: their rows and int64 index, query, output, and each split's part, written and read."""
    per_split = next((n for n in (256, 128) if shape.keys * -(-selected // n) >= 512), 64)
    splits = -(-selected // per_split)
    parts = shape.batch * shape.heads * splits * (shape.dim + 1) * _FLOAT
    rows = shape.keys * selected * (2 * shape.dim * _HALF + 8)
    group = max(16, _power(shape.heads // shape.kv_heads))
    return Work(
        rows + 2 * shape.queries * _HALF + 2 * parts, products=4 * shape.keys * group * selected * _power(shape.dim)
    )


def rows_work(shape: Shape) -> Work:
    """Causal flash attention that stores each row's log-sum-exp."""
    tokens, heads = shape.tokens, shape.batch * shape.heads
    moved = 2 * tokens * shape.queries * _HALF + 2 * tokens * shape.keys * shape.dim * _HALF + tokens * heads * _FLOAT
    return Work(moved, products=4 * heads * _causal(shape) * _power(shape.dim))


def flash_work(shape: Shape) -> Work:
    """`rows_work`, and the pass over the columns: queries, keys and log-sum-exps again, and three numbers a key."""
    tokens, heads = shape.tokens, shape.batch * shape.heads
    moved = tokens * (shape.queries + shape.keys * shape.dim) * _HALF + tokens * (heads + 3 * shape.keys) * _FLOAT
    return rows_work(shape) + Work(moved, products=2 * heads * _causal(shape) * _power(shape.dim))


def gated_work(shape: Shape, *, rank: int) -> Work:
    """`rows_work`, and the gate: both its projections, and when each key is dropped, written once and read once."""
    gates = shape.batch * shape.tokens * (2 * rank * _HALF + 2 * _FLOAT)
    half = Shape(shape.batch, 1, 1, rank, shape.tokens)
    return rows_work(shape) + Work(gates, products=2 * shape.batch * _causal(half) * _power(rank))


def evict_scan_work(shape: Shape) -> Work:
    """One query over `tokens` held keys, the newest among them.

    Per key and KV head: its rows; its column, score, decay and weight read; score and final score written; and each query
    head's logit written and read.
    """
    group = shape.heads // shape.kv_heads
    per_key = 2 * shape.dim * _HALF + (6 + 2 * group) * _FLOAT
    vector = 4 * shape.batch * shape.heads * shape.tokens * shape.dim
    return Work(shape.keys * shape.tokens * per_key + 2 * shape.queries * _HALF, vector=vector)


def _causal(shape: Shape) -> float:
    """Pairs of query and key in the tiles on and below the diagonal, per head."""
    block = 64 if _power(shape.dim) <= 128 else 32
    tiles = -(-shape.tokens // block)
    return block * block * tiles * (tiles + 1) / 2


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def predicted() -> str:
    """The table of docs/roofline.md, of Llama-3-8B's heads in half precision."""
    lines = [
        "| call | tokens | batch | MB | GFLOP | " + " | ".join(CARDS) + " |",
        "|---" * (5 + len(CARDS)) + "|",
    ]
    for batch, tokens in ((1, 32_768), (32, 32_768), (1, 131_072)):
        shape = Shape(batch, 32, 8, 128, tokens)
        held = Shape(batch, 32, 8, 128, 1024)
        calls = {
            "`label_scores`, int4, 16 channels, softmax": label_work(shape, channels=16, kind="int4", softmax=True),
            "`sparse_decode`, 1/16 of the keys": sparse_decode_work(shape, selected=tokens // 16),
            "every key read once (dense)": Work(2 * shape.keys * tokens * shape.dim * _HALF),
        }
        if batch == 1:
            calls |= {
                "`flash_column_score` of the prompt": flash_work(shape),
                "`gated_attention` of the prompt, rank 64": gated_work(shape, rank=64),
            }
            calls |= {"`evict_scan` of one query, 1,024 keys held": evict_scan_work(held)} if tokens == 32_768 else {}
        for name, work in calls.items():
            flops = (work.products + work.vector) / 1e9
            times = " | ".join(_time(work.seconds(card)) for card in CARDS.values())
            lines.append(f"| {name} | {tokens:,} | {batch} | {work.memory / 1e6:,.1f} | {flops:,.1f} | {times} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def counted() -> str:
    """The table of counts against formulas; takes a few seconds."""
    from benchmarks.counted import cases, counting

    lines = ["| call | bytes counted | formula | issued | FLOPs counted | formula |", "|---|---|---|---|---|---|"]
    for case in cases():
        with counting() as found:
            case.run()
        model = case.model
        flops, expected = (found.products, model.products) if model.products else (found.vector, model.vector)
        lines.append(
            f"| {case.name} | {found.memory:,} | {found.memory / model.memory - 1:+.1%} | {found.issued:,} | {flops:,} | "
            f"{flops / expected - 1:+.1%} |"
        )
    return "\n".join(lines)


def main() -> int:
    head, rest = PAGE.read_text().split(_BEGIN)
    tail = rest.split(_END)[1]
    PAGE.write_text(f"{head}{_BEGIN}\n\n{predicted()}\n\n{counted()}\n\n{_END}{tail}")
    return 0


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    sys.exit(main())
