"""The command that shows what a model with an indexer of its own reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import Trace
from tests import families, tiny
from tests.cli.test_cli import as_json, call

TOP = 5


@pytest.fixture
def folder(tmp_path):
    config = families.configuration("deepseek_v32")
    config.index_topk = TOP
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_what_the_indexer_chose_is_a_trace_and_a_page(folder, tmp_path, capsys):
    page, text = tmp_path / "page.html", "the ropes of the harbour"
    found = as_json(
        capsys, "native", "--model", folder, "--prompt", text, "--out", str(tmp_path / "own"), "--html", str(page)
    )
    assert found["tokens"] == len(text) and found["pipeline"] == "decode=lightning_indexer"
    assert found["perplexity"] is None and found["regret"] is None, "what was not measured has no number"
    trace = Trace.load(tmp_path / "own" / "trace.npz")
    read = np.unpackbits(trace.reading.chosen, axis=-1)[..., : len(text)]
    assert (read.sum(-1) == np.minimum(np.arange(len(text)) + 1, TOP)).all()
    assert b"lightning_indexer" in page.read_bytes()


def test_a_model_without_an_indexer_and_int8_are_refused_in_a_sentence(folder, tmp_path, capsys):
    tiny.transformer("llama", torch.float32).save_pretrained(tmp_path / "llama")
    tiny.tokenizer().save_pretrained(tmp_path / "llama")
    status, _, said = call(capsys, "native", "--model", str(tmp_path / "llama"), "--prompt", "abc")
    assert status == 2 and "llama has no indexer that chooses keys in its first layer" in said
    status, _, said = call(capsys, "native", "--model", folder, "--prompt", "abc", "--dtype", "int8")
    assert status == 2 and "use auto, float32, bfloat16 or float16" in said
