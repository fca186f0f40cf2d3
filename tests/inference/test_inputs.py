"""What run and generate take, refuse with a sentence, and report on their way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import generate, methods, run
from tests import tiny
from tests.inference.every import PROMPT, pipeline, same_traces, text, traced


@pytest.mark.parametrize("generating", [False, True])
def test_progress_rises_to_one_and_can_cancel(generating):
    def go(progress):
        if generating:
            return generate(tiny.model(), text()[:20], pipeline("a2sf(budget=12)"), max_new_tokens=4, progress=progress)
        return run(tiny.model(), text()[:20], pipeline("a2sf(budget=12)"), progress=progress)

    shares: list[float] = []
    go(lambda share, doing: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 6

    def cancel(share: float, doing: str) -> None:
        if share > 0.3:
            raise InterruptedError(doing)

    with pytest.raises(InterruptedError):
        go(cancel)
    assert np.isfinite(run(tiny.model(), text()[:20]).perplexity)  # and the model works on


def test_what_does_not_fit_is_refused_with_a_sentence():
    model, most = tiny.model(), tiny.MAX_POSITIONS
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(model, "  \n ")
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(model, [])
    with pytest.raises(
        ValueError, match=rf"the prompt has {most + 2} tokens and tiny-llama reads at most {most}: shorten it by 2"
    ):
        run(model, "x" * (most + 2))
    with pytest.raises(ValueError, match="shorten it by 1 tokens"):
        run(model, [5] * (most + 1))
    with pytest.raises(ValueError, match="generate at most 20"):
        generate(model, [5] * (most - 20), max_new_tokens=21)
    with pytest.raises(ValueError, match="max_new_tokens is at least 1; got 0"):
        generate(model, "text", max_new_tokens=0)
    with pytest.raises(ValueError, match="token ids lie between 0 and 257; got 5 to 258"):
        run(model, [5, 258])
    with pytest.raises(ValueError, match="token ids lie between 0 and 257; got -1 to 5"):
        generate(model, [-1, 5])
    with pytest.raises(ValueError, match="the seed is a whole number of 64 bits"):
        run(model, "text", seed=2**64)
    with pytest.raises(ValueError, match="half a surrogate pair"):
        run(model, "a\ud800b")
    with pytest.raises(ValueError, match="lists 2 layers and the model has 3"):
        run(model, "text", pipeline("a2sf(forgetting_factor=[0.1, 0.2])"))
    with pytest.raises(ValueError, match=r"a pipeline is a Pipeline, as in .* or its text; got A2SF"):
        run(model, "text", methods.A2SF())
    for prompt in ([[1, 2]], [1.5], 7, ["two", "texts"]):
        with pytest.raises(ValueError, match="a prompt is a text, or a flat list of token ids"):
            run(model, prompt)
    for seed in (1.5, "1", None):
        with pytest.raises(ValueError, match="seed is a whole number; got"):
            run(model, "text", seed=seed)
    with pytest.raises(ValueError, match="n_prefill is 0 or more tokens; got -1"):
        run(model, "text", pipeline("snapkv(budget=32)"), n_prefill=-1)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is 0 or more; got"):
            generate(model, "text", temperature=temperature)


def test_numbers_of_numpy_and_torch_and_a_pipelines_text_serve(tmp_path):
    spelled = "eviction=random(budget=12)"
    wanted = traced("random(budget=12)", text(), seed=3, against_dense=False)
    asked = {"seed": np.int64(3), "n_prefill": np.int32(PROMPT), "against_dense": False}
    for ids in (np.array(text()), torch.tensor(text())):
        trace = run(tiny.model(), ids, spelled, **asked)
        same_traces(trace, wanted)
        trace.save(tmp_path / "t.npz")
    made = generate(tiny.model(), text(), spelled, max_new_tokens=np.int64(2), stop_at_eos=False)
    assert len(made.token_ids) == 2
    cold = generate(tiny.model(), text(), max_new_tokens=4, temperature=1e-300, stop_at_eos=False)
    assert cold.token_ids == generate(tiny.model(), text(), max_new_tokens=4, stop_at_eos=False).token_ids


def test_the_longest_text_that_fits_runs():
    trace = run(tiny.model(), [5] * tiny.MAX_POSITIONS, pipeline("a2sf(budget=12)"), against_dense=False)
    assert trace.n_tokens == tiny.MAX_POSITIONS
    out = generate(tiny.model(), [5] * (tiny.MAX_POSITIONS - 2), max_new_tokens=2, stop_at_eos=False)
    assert len(out.token_ids) == 2


def test_a_single_token_runs():
    trace = run(tiny.model(), [65], pipeline("a2sf(budget=12)"))
    assert np.isnan(trace.nll).all()
    assert np.isnan(trace.perplexity)
    assert trace.density() == 1.0
    assert trace.evicted_at.tolist() == [[[1], [1]]] * 3


def test_any_seed_of_64_bits_serves():
    for seed in (-(2**63), -1, 2**63 - 1):
        trace = traced("random(budget=12)", text(), seed=seed, against_dense=False)
        assert trace.provenance.seed == seed
