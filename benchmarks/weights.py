"""What weight pruning costs to compute, and what a smaller feed-forward block saves."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import Row, ratio, seconds
from benchmarks.tracing import _ids, _plain
from sparsity_core import load, methods
from sparsity_core.methods.weights.prunenet.training import train_policy
from sparsity_core.models import Model
from sparsity_core.studies import kept_neurons, layer_grams
from sparsity_core.weights import each_spectrum, feed_forwards, singular_values

_RUNS = 5


def main(data: Path) -> list[Row]:
    model = load()
    _check(model)
    rows = [*_spectra(model), _slider(model), *_speed(model), _policy(model)]
    return rows


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row


def _check(model: Model) -> None:
    weight = feed_forwards(model)[0].first
    expected = torch.linalg.svdvals(weight.double())
    for found in each_spectrum([weight, weight]):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def _all_spectra(model: Model) -> list[torch.Tensor]:
    return list(each_spectrum([w for block in feed_forwards(model) for w in block.matrices.values()]))


def _spectra(model: Model) -> list[Row]:
    every = [seconds(lambda: _all_spectra(model)) for _ in range(_RUNS + 1)][1:]
    weight = feed_forwards(model)[0].first
    own, full, times = ratio(
        lambda: singular_values(weight), lambda: torch.linalg.svd(weight, full_matrices=False), runs=_RUNS
    )
    note = f"{own * 1e3:.0f} ms against {full * 1e3:.0f} ms"
    return [
        _said(Row("spectra of all FFN matrices", median(every), "s", 3.0)),
        _said(Row("spectrum of one gate matrix", times, "", 1 / 3, "torch.linalg.svd", note)),
    ]


def _slider(model: Model) -> Row:
    """A ratio never asked before, all three matrices of a layer whose Gram matrices are kept."""
    grams, importance = layer_grams(model, 15), feed_forwards(model)[15].first.norm(dim=1).numpy()

    def move(ratio_: float) -> None:
        kept = kept_neurons(importance, methods.RowNorm(ratio=ratio_))
        for name in feed_forwards(model)[15].matrices:
            grams.cut(name, kept)

    times = [seconds(partial(move, 0.1 + 0.05 * i)) for i in range(_RUNS + 1)][1:]
    return _said(Row("moving the ratio slider, one layer, without the browser", median(times), "s", 0.7))


def _speed(model: Model) -> list[Row]:
    """Tokens per second of a forward and of decoding, as shares of the whole model's time."""
    ids = _ids(model)[:512]
    rows = []
    for multiple in (1, 8, 64):
        cut = methods.RowNorm(ratio=0.3, multiple=multiple).compress(model).model  # type: ignore[call-arg]
        for name, tokens, call in (("forward of 512 tokens", 512, partial(_plain, ids=ids)), ("decoding", 8, _decode)):
            after, before, times = ratio(partial(call, cut), partial(call, model), runs=_RUNS)
            note = f"{tokens / after:.0f} tokens/s, {tokens / before:.0f} before"
            width = feed_forwards(cut)[0].n_neurons
            about = f"{name}, 30 % of the neurons cut, multiples of {multiple} ({width})"
            rows.append(_said(Row(about, times, "", None, "the whole model", note)))
    return rows


@torch.inference_mode()
def _decode(model: Model) -> None:
    model.hf.generate(torch.arange(3, 35)[None], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)


def _policy(model: Model) -> Row:
    """Training from nothing, in a cache of its own so that no spectrum is known yet."""
    kept = os.environ.get("SPARSELENS_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSELENS_CACHE"] = folder
        try:
            took = seconds(lambda: train_policy(model, episodes=20))
        finally:
            if kept is None:
                del os.environ["SPARSELENS_CACHE"]
            else:
                os.environ["SPARSELENS_CACHE"] = kept
    return _said(Row("training a policy, 20 episodes", took, "s", 90, "", "once"))
