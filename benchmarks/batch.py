"""Texts that share their forwards, against the same texts one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, ratio
from sparsity_core import Pipeline, generate, generate_batch, load
from sparsity_core.inference import read_logits, read_logits_batch
from sparsity_core.models import Model, evaluation_text

_TEXTS = 8
_STEPS = 16
_PIPELINES = ("dense", "eviction=a2sf(budget=96)", "decode=double_sparsity(tokens=0.25)")


def main(data: Path) -> list[Row]:
    model = load()
    ids, rows = model.encode_all(evaluation_text()), []
    for spelled in _PIPELINES:
        pipeline = Pipeline.parse(spelled)
        short = [ids[i * 60 : i * 60 + 40 + 2 * i] for i in range(_TEXTS)]
        long = [ids[i * 400 : i * 400 + 360 + 5 * i] for i in range(_TEXTS)]
        for name, together, alone in (
            (f"scoring {_TEXTS} texts of 40 to 54 tokens", *_scoring(model, short, pipeline)),
            (f"{_STEPS} new tokens after {_TEXTS} prompts of 360 to 395", *_writing(model, long, pipeline)),
        ):
            _check(together(), alone())
            batched, one_by_one, times = ratio(together, alone)
            note = f"{batched:.2f} s against {one_by_one:.2f} s"
            rows.append(Row(f"{name}, {spelled}", times, "", None, "one after another", note))
            print(rows[-1], flush=True)
    return rows


def _scoring(model: Model, texts: list[list[int]], pipeline: Pipeline) -> tuple[Any, Any]:
    def together() -> Any:
        how: dict[str, Any] = {"rows": [4] * len(texts), "n_prefill": [20] * len(texts)}
        return [logits.numpy() for logits, _ in read_logits_batch(model, texts, [pipeline] * len(texts), **how)]

    def alone() -> Any:
        return [read_logits(model, text, pipeline, rows=4, n_prefill=20)[0].numpy() for text in texts]

    return together, alone


def _writing(model: Model, texts: list[list[int]], pipeline: Pipeline) -> tuple[Any, Any]:
    how: dict[str, Any] = {
        "max_new_tokens": _STEPS,
        "snapshots": 0,
        "against_dense": False,
        "stop_at_eos": False,
    }

    def losses(found: list[Any]) -> Any:
        return [out.trace.nll[: out.trace.n_prompt - 1] for out in found]

    return (
        lambda: losses(generate_batch(model, texts, [pipeline] * len(texts), **how)),
        lambda: losses([generate(model, text, pipeline, **how) for text in texts]),
    )


def _check(together: Any, alone: Any) -> None:
    """Where they differ by more than rounding a decision was another, which near ties allow, in few places only."""
    for one, other in zip(together, alone, strict=True):
        apart = np.abs(one - other) > 1e-2
        assert apart.mean() < 0.02, f"{apart.mean():.1%} of what a batch gives differs from each text alone"
