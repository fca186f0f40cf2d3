"""Texts of unequal lengths that share their forwards are each what they are alone, under every stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, generate, generate_batch
from sparsity_core.inference import read_logits, read_logits_batch
from sparsity_core.models.loading import wrap
from tests import tiny
from tests.inference.every import same_traces, small
from tests.methods.gates import gate_file, gated

LENGTHS = (30, 9, 41)
TEXTS = [tiny.ids(n, seed) for seed, n in enumerate(LENGTHS)]
PIPELINES = [
    "dense",
    "eviction=a2sf(budget=12, forgetting_factor=0.5)",
    "eviction=a2sf(budget=12, forgetting_factor={other: 0.25, space: 0.75})",
    "eviction=snapkv(budget=12, observation_window=4)",
    "eviction=r_kv(budget=12, every=3, recent=4)",
    f"eviction={small('ada_kv')}",
    "prefill=sliding_window(window=8)",
    "decode=sparq(tokens=0.5)",
    "decode=quest(page=4)",
    "decode=think(window=4)",
    "weights=row_norm(ratio=0.25) eviction=h2o(budget=12)",
    "prefill=bigbird(block=4) eviction=tova(budget=12) decode=sparq(tokens=0.5)",
]
FAMILIES = ("llama", "gpt2", "qwen2", "gemma3", "opt")


def check_alone(model, pipeline: Pipeline | str, **how) -> None:
    asked = {"max_new_tokens": 7, "stop_at_eos": False, **how}
    together = generate_batch(model, TEXTS, [pipeline] * len(TEXTS), **asked)
    assert len({tuple(out.token_ids) for out in together}) == len(TEXTS)
    for ids, out in zip(TEXTS, together, strict=True):
        alone = generate(model, ids, pipeline, **asked)
        assert (out.token_ids, out.text, out.kv_bytes) == (alone.token_ids, alone.text, alone.kv_bytes)
        same_traces(out.trace, alone.trace, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_is_generated_in_a_batch_is_what_is_generated_alone(pipeline):
    check_alone(tiny.model(), pipeline)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_and_so_it_is_in_other_families(family):
    check_alone(tiny.model(family), "eviction=a2sf(budget=12, forgetting_factor=0.5)")


def test_a_gate_reads_what_its_own_text_reads(tmp_path):
    check_alone(tiny.model(), gated(gate_file(tmp_path, tiny.model())))


def test_draws_are_of_each_text():
    check_alone(tiny.model(), "eviction=random(budget=12)", temperature=0.8, seed=3)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_logits_of_a_batch_are_those_of_each_text(pipeline):
    model, rows = tiny.model(), (3, 9, 5)
    how = {"rows": rows, "n_prefill": [20, 5, 30]}
    together = read_logits_batch(model, TEXTS, [Pipeline.parse(pipeline)] * 3, **how)
    for place, (logits, share) in enumerate(together):
        own = {name: value[place] for name, value in how.items()}
        alone, its_share = read_logits(model, TEXTS[place], Pipeline.parse(pipeline), **own)
        assert logits.shape == alone.shape == (rows[place], alone.shape[1])
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-9)
        assert share == its_share


def test_each_prompt_has_its_own_pipeline_cut_and_end():
    model = tiny.model()
    pipelines = ["eviction=h2o(budget=12)", "dense", "eviction=snapkv(budget=10, observation_window=2)"]
    cuts = [None, 4, 25]
    first = generate(model, TEXTS[0], pipelines[0], max_new_tokens=9).token_ids
    together = generate_batch(model, TEXTS, pipelines, n_prefill=cuts, max_new_tokens=9)
    assert together[0].token_ids == first
    for out, ids, pipeline, cut in zip(together, TEXTS, pipelines, cuts, strict=True):
        alone = generate(model, ids, pipeline, n_prefill=cut, max_new_tokens=9)
        assert out.token_ids == alone.token_ids
        np.testing.assert_array_equal(out.trace.evicted_at, alone.trace.evicted_at)


def test_texts_end_at_their_own_end_of_text():
    hf = tiny.transformer("llama")
    model = wrap(hf, tiny.tokenizer(), "tiny-llama")
    free = [out.token_ids for out in generate_batch(model, TEXTS, ["dense"] * 3, max_new_tokens=9, stop_at_eos=False)]
    stop = next(token for token in free[1] if token not in free[0])  # text 1 stops where it comes, text 0 never
    hf.generation_config.eos_token_id = stop
    stopped = generate_batch(model, TEXTS, ["dense"] * 3, max_new_tokens=9)
    assert stopped[0].token_ids == free[0]
    assert stopped[1].token_ids == free[1][: free[1].index(stop) + 1]


def test_what_takes_one_text_at_a_time_says_so():
    model = tiny.model()
    with pytest.raises(ValueError, match="an offloaded cache is of one text: give one prompt at a time"):
        generate_batch(model, TEXTS[:2], ["decode=double_sparsity(offload=True)"] * 2)
    with pytest.raises(ValueError, match="the pipelines of a batch have one weights stage"):
        generate_batch(model, TEXTS[:2], ["dense", "weights=row_norm(ratio=0.25)"])
    with pytest.raises(
        ValueError, match="a pipeline and an n_prefill for each prompt; got 2 prompts, 1 pipelines and 2"
    ):
        generate_batch(model, TEXTS[:2], ["dense"])
