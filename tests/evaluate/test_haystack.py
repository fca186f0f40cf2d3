"""A needle at many depths: where it stands, how long its prompt is, and what its loss is of."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import generate
from sparsity_core.evaluate import NEW_TOKENS, NeedleFound, haystack
from sparsity_core.evaluate.haystacks import answer_loss, needles_of
from sparsity_core.evaluate.needles import Needle, needle_of
from sparsity_core.evaluate.ruler import ruler_rows
from sparsity_core.inference import pipeline_of
from sparsity_core.models.loading import wrap
from tests import tiny

PIPELINES = [None, "eviction=h2o(budget=64)", "eviction=snapkv(budget=64)", "prefill=minference"]


def words(text: str) -> int:
    return len(text.split())


@functools.cache
def long_model():
    torch.manual_seed(3)
    config = tiny.CONFIGS["llama"](max_position_embeddings=1024)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    return wrap(hf.eval().requires_grad_(False), tiny.tokenizer(), "tiny-long")


@pytest.mark.parametrize(("depth", "before"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_the_needle_stands_at_the_depth_that_was_asked_for(depth: float, before: int) -> None:
    # Its instruction has 23 words, the needle 10, the question 13 and the answer's beginning 12; a line of the haystack has 19.
    needle = needle_of(words, 23 + 10 + 13 + 12 + 8 * 19, depth)
    lines = needle.prompt.split("\n")
    assert len(lines) == 1 + 8 + 1 + 1 and lines[1 + before].endswith(f"is: {needle.answer}.")
    assert needle.at == 23 + 19 * before and needle.n_tokens == 210


@pytest.mark.parametrize("length", [100, 101, 102, 103, 104, 105, 111, 256, 1000])
def test_a_prompt_is_as_long_as_asked_for_to_a_sentence(length: int) -> None:
    needle = needle_of(words, length, 0.5)
    assert length - 4 < needle.n_tokens == words(needle.prompt) <= length  # no sentence has more than four words


def test_the_number_is_the_one_that_ruler_hides_for_the_seed() -> None:
    (row,) = ruler_rows("niah_single_1", words, length=400, n=1, seed=5)
    needles = [needle_of(words, length, depth, 5) for length in (100, 300) for depth in (0.0, 1.0)]
    assert {needle.answer for needle in needles} == set(row["answers"])
    assert row["asked"].split("\n")[-1] in needles[0].prompt  # the same key is asked for


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_answer_that_is_fed_is_as_likely_as_one_that_is_written(pipeline: str | None) -> None:
    """What the model writes by itself has its losses in the trace: fed the same tokens, they are the same."""
    model, chosen = long_model(), pipeline_of(pipeline)
    prompt = needle_of(lambda text: len(text.encode()), 700, 0.5).prompt
    own = generate(model, prompt, chosen, max_new_tokens=6, against_dense=False, stop_at_eos=False)
    (n, ids) = own.trace.n_prompt, own.trace.token_ids
    mean = own.trace.nll[n - 1 : n + 4].mean()
    fed = generate(
        model, ids.tolist(), chosen, n_prefill=n, max_new_tokens=1, against_dense=False, stop_at_eos=False
    ).trace
    assert fed.nll[n - 1 : n + 4].mean() == pytest.approx(mean, rel=1e-6)


def test_the_loss_of_an_answer_is_that_of_its_own_tokens_in_transformers_logits() -> None:
    model = long_model()
    prompt = needle_of(lambda text: len(text.encode()), 700, 0.5).prompt
    written = generate(model, prompt, max_new_tokens=1).trace
    ids = torch.tensor([model.encode(f"{prompt} 1234567")])
    logits = model.hf(ids).logits[0, -9:-1].log_softmax(-1)  # a space and seven digits, a token each
    expected = -logits.gather(1, ids[0, -8:, None]).mean()
    loss = answer_loss(model, pipeline_of(None), Needle(700, 0.5, prompt, "1234567", 700, 0), written)
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_each_cell_of_the_grid_is_a_run_of_its_own() -> None:
    model, told = long_model(), []
    found = haystack(
        model, "eviction=h2o(budget=64)", lengths=(500, 600), depths=(0.0, 1.0), progress=lambda *at: told.append(at)
    )
    assert [(f.needle.length, f.needle.depth) for f in found] == [(500, 0.0), (500, 1.0), (600, 0.0), (600, 1.0)]
    shares = [share for share, _ in told]
    assert np.diff(shares).min() > -1e-9 and shares[0] >= 0 and shares[-1] == pytest.approx(1)
    assert told[-1][1].startswith("600 tokens, depth 100%: ")
    last = found[-1]
    own = generate(model, last.needle.prompt, "eviction=h2o(budget=64)", max_new_tokens=NEW_TOKENS)
    assert last.written == own.text and last.found == (last.needle.answer in own.text)


def test_a_run_that_is_given_is_not_made_again_and_finds_what_it_wrote() -> None:
    model, asked = long_model(), list[Needle]()

    def write(needle, told):
        asked.append(needle)
        made = generate(model, needle.prompt, max_new_tokens=9, stop_at_eos=False).trace
        n, answer = made.n_prompt, model.encode_all(f" {needle.answer}")
        ids = np.r_[made.token_ids[:n], answer].astype(np.int32)
        nll = made.nll.copy()
        nll[n - 1 : n + 7] = math.log(2)  # as if each had a probability of one half
        return made.replaced(token_ids=ids, nll=nll, continuation=f" {needle.answer}.")

    found = haystack(model, lengths=[500], depths=[0.5], write=write)
    assert [type(f) for f in found] == [NeedleFound] and len(asked) == 1
    assert found[0].found and found[0].loss == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"lengths": [1010]}, "tiny-long reads at most 1,024 tokens, .* choose a length of at most 1,008; got 1,010"),
        ({"lengths": [40]}, "a haystack has at least [0-9]+ tokens with its question; got 40"),
        ({"lengths": []}, "lengths are different numbers, at least one; got"),
        ({"lengths": [500, 500]}, "lengths are different numbers"),
        ({"lengths": [500.5]}, "a length is a whole number"),
        ({"depths": [1.5], "lengths": [500]}, "a depth is a share from 0 .* got 1.5"),
        ({"depths": [math.nan], "lengths": [500]}, "a depth is a share"),
    ],
)
def test_a_grid_that_cannot_be_is_a_sentence(asked: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        needles_of(long_model(), **({"lengths": [500], "depths": [0.5]} | asked))


def test_an_unknown_question_is_fed_after_the_cut_for_what_is_written_and_for_the_loss() -> None:
    """One token a byte, so that the place of the question is its place in the prompt."""
    model, pipeline = long_model(), "eviction=snapkv(budget=64)"
    how = {"lengths": [500], "depths": [0.5]}
    (known,), (unknown,) = (haystack(model, pipeline, question=each, **how) for each in ("known", "unknown"))
    prompt, answer = unknown.needle.prompt, unknown.needle.answer
    ids, n = model.encode(prompt), prompt.index("\nWhat is the special magic number")
    assert len(ids) == len(prompt.encode())
    own = generate(model, ids, pipeline, n_prefill=n + 1, max_new_tokens=NEW_TOKENS)
    assert unknown.written == own.text
    whole = model.encode(f"{prompt} {answer}")
    fed = generate(model, whole, pipeline, n_prefill=n + 1, max_new_tokens=1, against_dense=False).trace
    mean = fed.nll[len(ids) - 1 : len(whole) - 1].astype(np.float64).mean()
    assert unknown.loss == pytest.approx(mean, rel=1e-6) and unknown.loss != pytest.approx(known.loss, rel=1e-6)
