"""A prompt whose end is unknown to the compression: read a token at a time after the cut."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core import generate, run
from sparsity_core.inference import refill
from sparsity_core.kinds import Pipeline
from sparsity_core.models import PROMPTS
from sparsity_core.record import RunSpec
from tests import tiny

IDS = tiny.ids(40)
PIPELINES = [
    "dense",
    "eviction=h2o(budget=12)",
    "eviction=snapkv(budget=12, observation_window=4)",
    "decode=quest(page=4)",
]


@pytest.mark.parametrize("pipeline", PIPELINES[:2])
def test_what_drops_as_it_goes_does_not_see_where_a_prompt_is_parted(pipeline):
    whole, parted = (generate(tiny.model(), IDS, pipeline, max_new_tokens=6, n_prefill=n) for n in (None, 25))
    assert parted.token_ids == whole.token_ids
    np.testing.assert_array_equal(parted.trace.evicted_at, whole.trace.evicted_at)
    np.testing.assert_allclose(parted.trace.nll, whole.trace.nll, atol=1e-9)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_parted_prompt_reads_as_one_forward_that_cuts_there(pipeline):
    out = generate(tiny.model(), IDS, pipeline, max_new_tokens=6, n_prefill=25, stop_at_eos=False)
    simulated = run(tiny.model(), IDS + out.token_ids[:-1], pipeline, n_prefill=25)
    np.testing.assert_array_equal(out.trace.evicted_at, simulated.evicted_at)
    if "decode" not in pipeline:  # there a run's queries all read sparsely, the prompt's too
        np.testing.assert_allclose(out.trace.nll, simulated.nll, atol=1e-9)


def test_a_cut_before_the_question_keeps_other_keys_than_one_that_knows_it():
    known, unknown = (generate(tiny.model(), IDS, PIPELINES[2], max_new_tokens=2, n_prefill=n) for n in (None, 25))
    assert (known.trace.evicted_at[..., :25] != unknown.trace.evicted_at[..., :25]).any()
    assert (unknown.trace.evicted_at[..., 25:] == unknown.trace.n_tokens).all()


@pytest.mark.parametrize("n", [0, 41, -1])
def test_a_part_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match=f"n_prefill is 1 to 40, the tokens of the prompt; got {n}"):
        generate(tiny.model(), IDS, n_prefill=n)


ASKED = "the cat sat on the mat. Question: where? Answer: on"  # a character is a token of the tiny model
FIRST, END = ASKED.index("Question"), ASKED.index(" Answer")


def test_a_question_that_is_not_known_is_read_after_the_cut():
    by_hand = generate(tiny.model(), ASKED, PIPELINES[2], max_new_tokens=3, n_prefill=FIRST)
    asked = generate(tiny.model(), ASKED, PIPELINES[2], max_new_tokens=3, question="unknown")
    assert asked.trace.n_prefill == asked.trace.n_at_once == FIRST and asked.trace.n_prompt == len(ASKED)
    np.testing.assert_array_equal(asked.trace.evicted_at, by_hand.trace.evicted_at)
    assert asked.trace.provenance.fields["question"] == "unknown" and "question" not in by_hand.trace.provenance.fields
    known = generate(tiny.model(), ASKED, PIPELINES[2], max_new_tokens=3, question="known").trace
    assert known.n_prefill == known.n_at_once == len(ASKED)
    cuts = [run(tiny.model(), ASKED, PIPELINES[2], question=each).n_prefill for each in ("auto", "known", "unknown")]
    assert cuts == [len(ASKED) // 2, END, FIRST]


@pytest.mark.parametrize("method", ['eviction=h2o(budget=12, protect="/o/")', PIPELINES[2], "decode=quest(page=4)"])
def test_what_was_decided_of_a_parted_prompt_is_decided_so_again(method):
    """Its user's rules are of what was read at once, and a decode stage chooses from there on."""
    trace = generate(tiny.model(), ASKED, method, max_new_tokens=3, question="unknown").trace
    steps, scores = refill(tiny.model(), trace, Pipeline.parse(method), 1, steps=trace.snapshot_steps.tolist())
    np.testing.assert_array_equal(steps, trace.snapshot_steps)
    np.testing.assert_allclose(scores, trace.snapshots[1], atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "settings", "sentence"),
    [
        (PROMPTS["repeated"].text[:60], {"question": "unknown"}, "no question is found .* so it cannot be unknown"),
        ("Where is it?", {"question": "unknown"}, "the prompt begins with its question"),
        ("It is. Where?", {"question": "known"}, "the prompt ends with its question, and a run reads nothing after it"),
        (ASKED, {"question": "maybe"}, "question is one of auto, known, unknown; got 'maybe'"),
        (ASKED, {"question": "known", "n_prefill": 3}, "give one of the two"),
        (ASKED, {"question": "unknown", "pipeline": "prefill=strided"}, "reads a run's text at once, its question too"),
    ],
)
def test_a_prompt_that_cannot_be_parted_is_a_sentence(prompt, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tiny.model(), prompt, **settings)


def test_a_spec_that_says_nothing_of_the_question_keeps_its_key():
    assert "question" not in RunSpec("m", "p").to_json()
    assert '"question": "unknown"' in RunSpec("m", "p", question="unknown").to_json()
