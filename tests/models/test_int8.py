"""Weights of int8: near the floats, smaller, told apart from them, and never cut.

torchao is not among what the tests install: where it is, transformers imports it at every start. It goes into a folder here.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, generate, load, methods, run
from sparsity_core.models import ModelError, wrap
from sparsity_core.models.int8 import in_int8
from tests import tiny
from tests.test_package import PROJECT

IDS = tiny.ids(60)


def copied(family: str):
    return wrap(copy.deepcopy(tiny.transformer(family, torch.float32)), tiny.tokenizer(), f"tiny-{family}")


@pytest.fixture(scope="module")
def torchao(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchao")
    wanted = next(line for line in PROJECT["optional-dependencies"]["int8"])
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted], check=True
    )
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def small(torchao):
    return in_int8(copied("llama"))


def test_without_torchao_a_sentence_says_what_to_install():
    with pytest.raises(ModelError, match=r"int8 weights need torchao: run `pip install sparselens\[int8\]`"):
        in_int8(copied("llama"))


@pytest.mark.slow
def test_losses_are_near_those_of_the_floats(small):
    whole = tiny.model("llama", torch.float32)
    found, dense = run(small, IDS), run(whole, IDS)
    difference = np.abs(found.nll[:-1] - dense.nll[:-1])
    assert 0 < difference.mean() < 0.1  # nats, of a random model, whose losses move far
    assert found.provenance.dtype == "int8" and found.provenance.fingerprint != dense.provenance.fingerprint


@pytest.mark.slow
def test_every_stage_but_weights_runs_and_generates_as_one_forward_reads(small):
    for pipeline in ("dense", "eviction=h2o(budget=12)", "prefill=sliding_window(window=9)"):
        out = generate(small, IDS, pipeline, max_new_tokens=1, stop_at_eos=False)
        np.testing.assert_allclose(out.trace.nll, run(small, IDS, pipeline).nll, atol=1e-4)


@pytest.mark.slow
def test_the_weights_take_less(small):
    assert small.n_bytes() < 0.75 * tiny.model("llama", torch.float32).n_bytes()


@pytest.mark.slow
def test_codes_are_not_cut(small):
    sentence = "are int8 numbers, which are neither cut nor taken apart: choose another number format"
    with pytest.raises(ValueError, match=sentence):
        small.compress(methods.get("row_norm")(ratio=0.25))
    with pytest.raises(ValueError, match=sentence):
        run(small, IDS, Pipeline.parse("weights=row_norm(ratio=0.25)"))


@pytest.mark.slow
def test_a_model_without_plain_linear_layers_is_refused(torchao):
    with pytest.raises(ModelError, match="has no plain linear layers"):
        in_int8(copied("gpt2"))


@pytest.mark.slow
def test_the_embedded_model_loads_so(torchao):
    model = load(dtype="int8")
    assert model.dtype_name == "int8" and model.dtype == torch.float32
    assert load(dtype="int8") is model
