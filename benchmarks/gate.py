"""Dynamic context pruning: the shipped gates on WikiText-2 beside eviction at equal kept context, bytes, and decode steps."""

from __future__ import annotations

import math
import statistics
import time
from contextvars import Context
from pathlib import Path

import torch
from transformers import DynamicCache

from benchmarks.measure import Row
from sparsity_core import Pipeline, generate, load, methods, run
from sparsity_core.methods.gate.dcp.records import family
from sparsity_core.models import Model

_BLOCK, _BLOCKS = 1024, 4
_CONVENTION = f"WikiText-2 test, first {_BLOCKS} blocks of {_BLOCK:,} tokens, no BOS"
_EVICTING = ("local_window", "streaming_llm", "h2o", "a2sf")
_CONTEXT, _STEPS = 2048, 43
_SPARSE = 0.35  # of the dense bytes: a decode step that keeps less is to be no slower


def main(data: Path) -> list[Row]:
    path = data / "wikitext-2-raw-test.txt"
    if not path.is_file():
        print(f"SKIPPED gate: there is no {path}; name the folder that holds it with --data")
        return []
    model = load()
    ids = model.encode_all(path.read_text())
    blocks = [ids[i * _BLOCK : (i + 1) * _BLOCK] for i in range(_BLOCKS)]
    dense, _ = _quality(model, blocks, Pipeline())
    rows = [_said(Row("dense", dense, "perplexity", None, "", _CONVENTION))]
    for gamma in family():
        gate = Pipeline(gate=methods.DCP(gamma=gamma))  # type: ignore[call-arg]
        found, kept = _quality(model, blocks, gate)
        rows.append(_cost(str(gate), found, kept, dense))
        # A budget b of n tokens keeps 2 b/n − (b/n)² of the causal pairs.
        budget = max(8, round(_BLOCK * (1.0 - math.sqrt(1.0 - kept))))
        for name in _EVICTING:
            eviction = Pipeline.parse(f"eviction={name}(budget={budget})")
            rows.append(_cost(str(eviction), *_quality(model, blocks, eviction), dense))
    for gamma in family():
        rows.append(_decode(model, ids[:_CONTEXT], gamma))
    return rows


def _quality(model: Model, blocks: list[list[int]], pipeline: Pipeline) -> tuple[float, float]:
    """(perplexity, share of the causal pairs that is kept)."""
    traces = [run(model, block, pipeline, snapshots=0, against_dense=False) for block in blocks]
    nll = sum(float(t.nll[:-1].astype("float64").sum()) for t in traces) / sum(t.n_tokens - 1 for t in traces)
    return math.exp(nll), sum(t.density() for t in traces) / len(traces)


def _cost(name: str, found: float, kept: float, dense: float) -> Row:
    return _said(Row(name, found, "perplexity", None, "", f"keeps {kept:.1%}, {found / dense - 1:+.1%}"))


def _decode(model: Model, ids: list[int], gamma: float) -> Row:
    """A decode step after a long prompt whose cache has lost what the gate dropped, against transformers' own, in turns."""
    plain = _Plain(model, ids)
    own: list[float] = []
    base: list[float] = []
    began = 0.0

    def progress(share: float, doing: str) -> None:
        nonlocal began
        if doing.startswith("token"):
            own.append(time.perf_counter() - began)
            base.append(Context().run(plain.step))  # a context of its own: the recorder does not see it
            began = time.perf_counter()

    out = generate(
        model,
        ids,
        Pipeline(gate=methods.DCP(gamma=gamma)),  # type: ignore[call-arg]
        max_new_tokens=_STEPS,
        stop_at_eos=False,
        against_dense=False,
        snapshots=0,
        progress=progress,
    )
    warm = slice(3, None)  # the first token is the prompt's
    times = statistics.median(a / b for a, b in zip(own[warm], base[warm], strict=True))
    kept = out.kv_bytes / out.kv_bytes_dense
    each = f"{statistics.median(own[warm]) * 1e3:.0f} ms against {statistics.median(base[warm]) * 1e3:.0f} ms"
    note = f"{each}; its cache and gate hold {kept:.0%} of the dense bytes"
    limit = 1.0 if kept < _SPARSE else None
    return _said(
        Row(f"decode step, {_CONTEXT} tokens, γ = {gamma:g}", times, "", limit, "transformers' SDPA decode", note)
    )


class _Plain:
    """Decoding by transformers alone, from the whole cache."""

    @torch.inference_mode()
    def __init__(self, model: Model, ids: list[int]) -> None:
        self._model, self._cache = model, DynamicCache()
        self._hidden = model.hidden(torch.tensor([ids]), past_key_values=self._cache, use_cache=True)

    @torch.inference_mode()
    def step(self) -> float:
        """Seconds of one token."""
        began = time.perf_counter()
        token = self._model.logits(self._hidden[0, -1]).argmax()[None, None]
        self._hidden = self._model.hidden(token, past_key_values=self._cache, use_cache=True)
        return time.perf_counter() - began


def _said(row: Row) -> Row:
    print(row, flush=True)
    return row
