"""Weights of int8: near the floats, smaller, told apart from them, and never cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, generate, load, methods, run
from sparsity_core.models import ModelError, wrap
from sparsity_core.models.int8 import in_int8
from tests import tiny

IDS = tiny.ids(60)


@pytest.fixture(scope="module")
def small():
    return in_int8(wrap(copy.deepcopy(tiny.transformer("llama", torch.float32)), tiny.tokenizer(), "tiny-int8"))


def test_losses_are_near_those_of_the_floats(small):
    whole = tiny.model("llama", torch.float32)
    found, dense = run(small, IDS), run(whole, IDS)
    difference = np.abs(found.nll[:-1] - dense.nll[:-1])
    assert 0 < difference.mean() < 0.1  # nats, of a random model, whose losses move far
    assert found.provenance.dtype == "int8" and found.provenance.fingerprint != dense.provenance.fingerprint


def test_every_stage_but_weights_runs_and_generates_as_one_forward_reads(small):
    for pipeline in ("dense", "eviction=h2o(budget=12)", "prefill=sliding_window(window=9)"):
        out = generate(small, IDS, pipeline, max_new_tokens=1, stop_at_eos=False)
        np.testing.assert_allclose(out.trace.nll, run(small, IDS, pipeline).nll, atol=1e-4)


def test_the_weights_take_less(small):
    assert small.n_bytes() < 0.75 * tiny.model("llama", torch.float32).n_bytes()


def test_codes_are_not_cut(small):
    sentence = "are int8 numbers, which are neither cut nor taken apart: choose another number format"
    with pytest.raises(ValueError, match=sentence):
        small.compress(methods.get("row_norm")(ratio=0.25))
    with pytest.raises(ValueError, match=sentence):
        run(small, IDS, Pipeline.parse("weights=row_norm(ratio=0.25)"))


def test_a_model_without_plain_linear_layers_is_refused():
    with pytest.raises(ModelError, match="has no plain linear layers"):
        in_int8(wrap(copy.deepcopy(tiny.transformer("gpt2", torch.float32)), tiny.tokenizer(), "tiny"))


def test_the_embedded_model_loads_so():
    model = load(dtype="int8")
    assert model.dtype_name == "int8" and model.dtype == torch.float32
    assert load(dtype="int8") is model
