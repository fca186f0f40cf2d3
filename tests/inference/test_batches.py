"""A recorder over a batch of equally long texts decides, row by row, as it does over each text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline
from sparsity_core.attention import EvictionStage, Recorder, Stages, layer_rules
from sparsity_core.inference.stages import gate_stage, recorder_for
from sparsity_core.inference.words import Words
from sparsity_core.models import new_cache, recording
from tests import tiny
from tests.inference.every import EVERY, NEW, PROMPT, pipeline, same
from tests.inference.test_uneven_heads import ENGINES, method
from tests.methods.gates import gate_file, gated

N = PROMPT + NEW
STEPS = list(range(0, N, 3))
TEXTS = [tiny.ids(N, seed) for seed in (0, 9)]
CHOSEN = {
    **{each: pipeline(each) for each in EVERY if "protect" not in each},
    **{f"own budgets, {of}": method(of) for of in ENGINES},
}


def recorder_of(texts: list[list[int]], chosen: Pipeline, cache=None, gate=None, rules=None) -> Recorder:
    model = tiny.model()
    classes = [Words.of(model, ids).classes for ids in texts]
    own = {} if rules is None else {"protected": rules[0]}
    eviction = EvictionStage(
        model,
        layer_rules(model, chosen.eviction),
        n_tokens=N,
        n_prefill=PROMPT,
        token_classes=classes,
        snapshot_steps=STEPS,
        **own,
    )
    stages = Stages(eviction, gate, dropped=None if rules is None else rules[1])
    return Recorder(model, stages, n_tokens=N, cache=cache)


def read(recorder: Recorder, texts: list[list[int]]) -> torch.Tensor:
    """The hidden states [B, T, hidden] of one forward, or of a prompt and a step for each later token where there is a cache."""
    model, ids = recorder.model, torch.tensor(texts)
    with torch.inference_mode(), recording(recorder):
        if recorder.cache is None:
            return model.hidden(ids, use_cache=False)
        states = []
        for start, end in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, N))]:
            recorder.start = start
            at = torch.arange(start, end)[None]
            asked = {"past_key_values": recorder.cache, "position_ids": at, "use_cache": True}
            states.append(model.hidden(ids[:, start:end], **asked))
        return torch.cat(states, dim=1)


def check_rows(physical: bool, chosen: Pipeline, make=lambda texts: {}) -> Recorder:
    """Each row of a batch against its text alone; returns the batch's recorder."""
    cache = (lambda: new_cache(tiny.model().hf)) if physical else (lambda: None)
    together = recorder_of(TEXTS, chosen, cache(), **make([0, 1]))
    hidden, total = read(together, TEXTS), 0
    for row, ids in enumerate(TEXTS):
        alone = recorder_of([ids], chosen, cache(), **make([row]))
        torch.testing.assert_close(hidden[row], read(alone, [ids])[0], rtol=0, atol=1e-9)
        same(together.evicted_at(N, row), alone.evicted_at(N))
        mine, own = together.stages.eviction.record(N, row), alone.stages.eviction.record(N)
        for name in ("budgets", "threshold", "snapshots"):
            same(getattr(mine, name), getattr(own, name), atol=1e-8)
        total += alone.cached_bytes()
    assert together.cached_bytes() == total
    return together


@pytest.mark.parametrize("physical", [False, True], ids=["simulated", "physical"])
@pytest.mark.parametrize("name", CHOSEN)
def test_a_row_of_a_batch_is_its_text_alone(name, physical):
    together = check_rows(physical, CHOSEN[name])
    one, two = (together.evicted_at(N, row) for row in range(2))
    by_position = any(word in name for word in ("random", "streaming", "window", "recent_share=1.0"))
    assert by_position or (one != two).any()


@pytest.mark.parametrize("physical", [False, True], ids=["simulated", "physical"])
@pytest.mark.parametrize("rest", [(), ("eviction=a2sf(budget=12)",)], ids=["gate", "gate and eviction"])
@pytest.mark.parametrize("propagate", [False, True])
def test_a_gate_drops_in_each_row_what_it_drops_alone(tmp_path, rest, propagate, physical):
    chosen = gated(gate_file(tmp_path, tiny.model(), propagate=propagate), *rest)
    together = check_rows(physical, chosen, lambda rows: {"gate": gate_stage(tiny.model(), chosen)})
    held = together._keys[0].n_held
    assert rest or not torch.equal(held[0], held[1])  # the rows hold unequal numbers of keys


@pytest.mark.parametrize("physical", [False, True], ids=["simulated", "physical"])
@pytest.mark.parametrize("method", ["a2sf(budget=12)", "snapkv(budget=12, observation_window=2)"])
def test_each_row_has_the_users_rules_of_its_own_text(method, physical):
    key = torch.arange(N)
    protected, dropped = torch.stack([key % 11 == 3, key % 13 == 5]), torch.stack([key % 7 == 2, key % 9 == 1])
    dropped &= ~protected
    check_rows(physical, pipeline(method), lambda rows: {"rules": (protected[rows], dropped[rows])})


@pytest.mark.parametrize("stage", ["prefill=sliding_window(window=8)", "decode=sparq(tokens=0.5)"])
def test_prefill_and_decode_methods_follow_one_text(stage):
    model = tiny.model()
    chosen = Pipeline.parse(stage)
    recorder = recorder_for(model, chosen, Words.of(model, TEXTS[0]), n_tokens=N, n_prefill=N)
    with pytest.raises(ValueError, match="follow one text at a time; got a batch of 2"), recording(recorder):
        model.hidden(torch.tensor(TEXTS), use_cache=False)


def test_the_texts_differ():
    assert (np.array(TEXTS[0]) != np.array(TEXTS[1])).mean() > 0.9
