"""The hook fires once in every layer, for one run at a time in each thread, and is taken off."""

from __future__ import annotations

import threading

import pytest
import torch

from sparsity_core import Pipeline, run
from sparsity_core.attention import EvictionStage, Recorder, Stages, layer_rules
from sparsity_core.models.loading import wrap
from sparsity_core.models.seam import recording
from tests import tiny
from tests.inference.every import pipeline, same_traces, text


def test_threads_with_their_own_methods_agree_with_solo_runs():
    chosen = [
        pipeline("a2sf(budget=12)"),
        pipeline("h2o(budget=6)"),
        Pipeline(),
        pipeline("snapkv(budget=9, observation_window=4)"),
    ]
    solo = [run(tiny.model(), text(), p) for p in chosen]
    found: dict[int, list] = {i: [] for i in range(len(chosen))}
    start = threading.Barrier(len(chosen))

    def work(i: int) -> None:
        start.wait()
        for _ in range(5):
            found[i].append(run(tiny.model(), text(), chosen[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(chosen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, alone in enumerate(solo):
        assert len(found[i]) == 5
        for trace in found[i]:
            same_traces(trace, alone, rtol=1e-6, atol=1e-9)


def recorder_of(model, n: int = 8) -> Recorder:
    eviction = EvictionStage(model, layer_rules(model, None), n_tokens=n, n_prefill=n, token_classes=[["word"] * n])
    return Recorder(model, Stages(eviction), n_tokens=n)


def test_the_hook_fires_once_in_every_layer():
    model, recorder = tiny.model(), recorder_of(tiny.model())
    ids = torch.tensor([text()[:8]])
    with recording(recorder):
        model.hidden(ids, use_cache=False)
    assert recorder.calls == [1, 1, 1]
    recorder.check_fired(1)
    with pytest.raises(RuntimeError, match=r"did not fire once per forward in layers \[0, 1, 2\]"):
        recorder.check_fired(2)
    model.hidden(ids, use_cache=False)  # outside the block nothing is recorded
    assert recorder.calls == [1, 1, 1]


def test_a_layer_that_bypasses_the_hook_fails_the_run():
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "bypassed")
    model.hf.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(RuntimeError, match=r"did not fire once per forward in layers \[1\]"):
        run(model, text(), pipeline("a2sf(budget=12)"))


def test_the_hook_is_taken_off_when_the_work_fails():
    recorder = recorder_of(tiny.model())
    with pytest.raises(ZeroDivisionError), recording(recorder):
        raise ZeroDivisionError
    tiny.model().hidden(torch.tensor([text()[:8]]), use_cache=False)
    assert recorder.calls == [0, 0, 0]
