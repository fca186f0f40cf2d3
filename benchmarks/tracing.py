"""What recording costs: dense recorded runs and eviction against the plain SDPA forward of the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measure import Row, peak_memory, ratio
from sparsity_core import Pipeline, load, run
from sparsity_core.models import EMBEDDED, Model, calibration_text
from sparsity_core.models.loading import wrap
from tests import tiny

_LONG = (4096, 16_384)  # tokens


def main(data: Path) -> list[Row]:
    model = load()
    ids = _ids(model)
    _check(model, ids[:256])
    rows = []
    for n, limit in ((2048, 1.2), (4096, 1.3)):
        recorded, plain, times = ratio(
            partial(run, model, ids[:n], against_dense=False), partial(_plain, model, ids[:n])
        )
        note = f"{recorded:.2f} s against {plain:.2f} s"
        rows.append(Row(f"dense recorded run, {n} tokens", times, "", limit, "plain SDPA forward", note))
        print(rows[-1], flush=True)
    pipeline = Pipeline.parse("eviction=a2sf(budget=256)")
    recorded, plain, times = ratio(
        lambda: run(model, ids[:1024], pipeline, against_dense=False), lambda: _plain(model, ids[:1024])
    )
    note = f"{recorded:.2f} s against {plain:.2f} s"
    rows.append(Row("a2sf paper, 1024 tokens, budget 256, all layers", times, "", 2.0, "plain SDPA forward", note))
    print(rows[-1], flush=True)
    plain_peak, own_peak = (median(_fresh_peak(what) for _ in range(5)) for what in ("hidden", "run"))
    note = f"{own_peak / 2**20:.0f} MB against {plain_peak / 2**20:.0f} MB of the forward without its logits"
    rows.append(
        Row("dense recorded run, 2048 tokens: extra peak memory", (own_peak - plain_peak) / 2**20, "MB", 300, "", note)
    )
    print(rows[-1], flush=True)
    long = ids[: model.arch.max_positions]
    began = time.perf_counter()
    trace = run(model, long, against_dense=False)
    rows.append(
        Row(f"dense recorded run, {trace.n_tokens} tokens", time.perf_counter() - began, "s", None, "", "works")
    )
    print(rows[-1], flush=True)
    rows += _long_texts()
    rows.append(
        Row("second start: import, load and verify the model", median(_second_start() for _ in range(5)), "s", 10)
    )
    print(rows[-1], flush=True)
    return rows


def _long_texts() -> list[Row]:
    """Peak memory a token of texts that fill the positions of a model of random weights, whose layers are SmolLM2-135M's."""
    rows = []
    for pipeline in ("dense", "eviction=a2sf(budget=256)"):
        short, long = (_fresh_long(pipeline, n) / n for n in _LONG)
        name = f"{pipeline}, {_LONG[1]:,} tokens in 4 layers: peak memory a token"
        note = f"{long / 2**10:.0f} kB against {short / 2**10:.0f} kB"
        rows.append(Row(name, long / short, "", 1.0, f"that of {_LONG[0]:,} tokens", note))
        print(rows[-1], flush=True)
    return rows


def _fresh_long(pipeline: str, n: int) -> int:
    return _printed(f"from benchmarks.tracing import print_long; print_long({pipeline!r}, {n})")


def print_long(pipeline: str, n: int) -> None:
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=4,
        max_position_embeddings=_LONG[1],
        vocab_size=258,
        bos_token_id=None,
        eos_token_id=tiny.END,
        pad_token_id=tiny.PAD,
    )
    torch.manual_seed(0)
    model = wrap(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tiny.tokenizer(), "random-llama-4")
    run(model, tiny.ids(256), pipeline)  # imports
    print(peak_memory(lambda: run(model, tiny.ids(n), pipeline)))


@torch.inference_mode()
def _plain(model: Model, ids: list[int]) -> torch.Tensor:
    return model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits


def _fresh_peak(what: str) -> int:
    """Bytes above the loaded model at the peak of a 2,048-token pass, in a process of its own that has freed nothing yet."""
    return _printed(f"from benchmarks.tracing import print_peak; print_peak({what!r})")


def _printed(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def print_peak(what: str) -> None:
    model = load()
    ids = _ids(model)[:2048]
    if what == "run":
        print(peak_memory(lambda: run(model, ids, against_dense=False)))
    else:
        with torch.inference_mode():
            print(peak_memory(lambda: model.hidden(torch.tensor([ids]), use_cache=False)))


def _ids(model: Model) -> list[int]:
    text = calibration_text()[:60_000]
    return model.tokenizer(text)["input_ids"][: model.arch.max_positions]


def _check(model: Model, ids: list[int]) -> None:
    trace = run(model, ids, against_dense=False)
    log_p = _plain(model, ids)[0].float().log_softmax(-1)
    expected = -log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(trace.nll[:-1]), expected, atol=1e-3, rtol=1e-4)


def _second_start() -> float:
    """Seconds of a fresh process until the model is ready, its conversion already in the cache."""
    began = time.perf_counter()
    code = f"from sparsity_core import load; load({EMBEDDED!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
    return time.perf_counter() - began
