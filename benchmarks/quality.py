"""What pruned weights cost in perplexity: WikiText-2 raw, test split, its first tokens in blocks of 2,048."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from sparsity_core import load, methods
from sparsity_core.evaluate import perplexity
from sparsity_core.models import Model
from sparsity_core.studies import RATIO, contenders
from sparsity_core.weights import recover

_BLOCKS = 4
_CONVENTION = f"WikiText-2 test, first {_BLOCKS} blocks of 2,048 tokens, no BOS"


def main(data: Path) -> list[Row]:
    path = data / "wikitext-2-raw-test.txt"
    if not path.is_file():
        print(f"SKIPPED quality: there is no {path}; name the folder that holds it with --data")
        return []
    text, model = path.read_text(), load()
    dense = _perplexity(model, text)
    rows = [_said(Row("dense", dense, "perplexity", None, "", _CONVENTION))]
    for method in contenders(RATIO):
        compressed = method.compress(model)
        ks = [item.ks for item in compressed.spectra if item.matrix == "gate"]
        note = f"mean D of gate {sum(ks) / len(ks):.4f}"
        rows.append(_said(Row(str(method), _perplexity(compressed.model, text), "perplexity", None, "", note)))
    cut = methods.WandaSP(ratio=RATIO)  # type: ignore[call-arg]
    healed = recover(cut.compress(model), steps=60)
    rows.append(
        _said(
            Row(
                f"{cut}, recovered",
                _perplexity(healed.model, text),
                "perplexity",
                None,
                "",
                "LoRA, 60 steps of 2 × 256",
            )
        )
    )
    return rows


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row


def _perplexity(model: Model, text: str) -> float:
    found: Any = perplexity(model, text, most_blocks=_BLOCKS)
    return found.perplexity
