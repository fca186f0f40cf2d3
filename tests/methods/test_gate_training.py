"""The training of gates: it stops and goes on, leaves the base alone, and refuses what it cannot do."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import sparsity_core.methods.gate.dcp.training as gate_training
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.gate.dcp.training import train_gate
from tests import tiny
from tests.methods.gates import SETTINGS, TEXT, gate_file


def test_a_training_that_is_stopped_goes_on_with_the_same_result(tmp_path):
    whole, model = train_gate(tiny.model(), SETTINGS, text=TEXT)
    assert model is tiny.model()
    assert len(whole.recipe["curve"]["loss"]) == len(whole.recipe["curve"]["kept"]) == 6
    file = tmp_path / "training.part"

    def stop(share, doing):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_gate(tiny.model(), SETTINGS, text=TEXT, checkpoint=file, progress=stop)
    assert file.exists()
    with pytest.raises(ValueError, match="holds a training with gamma"):
        train_gate(tiny.model(), dataclasses.replace(SETTINGS, gamma=1.0), text=TEXT, checkpoint=file)
    steps = []
    resumed, _ = train_gate(
        tiny.model(), SETTINGS, text=TEXT, checkpoint=file, progress=lambda share, doing: steps.append(share)
    )
    assert steps[0] == 0.5
    assert resumed.digest() == whole.digest()
    assert resumed.recipe["curve"] == whole.recipe["curve"]
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="no training that could go on"):
        train_gate(tiny.model(), SETTINGS, text=TEXT, checkpoint=file)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path, monkeypatch):
    def full(*args, **notes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate_training, "write_checkpoint", full)
    monkeypatch.setattr(gate_training, "_EVERY", 2)
    told = []
    whole, _ = train_gate(
        tiny.model(),
        SETTINGS,
        text=TEXT,
        checkpoint=tmp_path / "t.part",
        progress=lambda share, doing: told.append(doing),
    )
    assert any("no checkpoint: No space left on device" in doing for doing in told)
    assert whole.digest() == train_gate(tiny.model(), SETTINGS, text=TEXT)[0].digest()


def test_a_price_on_kept_pairs_drops_more_and_no_price_less():
    settings = dataclasses.replace(SETTINGS, steps=40, length=48, learning_rate=0.05)
    free, dear = (
        train_gate(tiny.model(), dataclasses.replace(settings, gamma=gamma), text=TEXT)[0].recipe["curve"]["kept"][-1]
        for gamma in (0.0, 3.0)
    )
    assert dear < free


def test_the_base_is_untouched_when_frozen_and_a_copy_is_trained_when_asked():
    before = {name: t.clone() for name, t in tiny.model().hf.state_dict().items()}
    settings = dataclasses.replace(SETTINGS, base_rate=1e-3, distil=False)
    gate, tuned = train_gate(tiny.model(), settings, text=TEXT)
    for name, t in tiny.model().hf.state_dict().items():
        assert torch.equal(t, before[name])
    assert not any(p.requires_grad for p in tiny.model().hf.parameters())
    assert tuned.fingerprint == gate.recipe["fingerprint"] != tiny.model().fingerprint
    gate.check(tuned)
    with pytest.raises(ValueError, match="trained on tiny-llama tuned"):
        gate.check(tiny.model())
    curve = gate.recipe["curve"]["loss"]
    assert curve[-1] < curve[0]


def test_a_gate_goes_on_from_another_one():
    first, _ = train_gate(tiny.model(), SETTINGS, text=TEXT)
    second, _ = train_gate(tiny.model(), dataclasses.replace(SETTINGS, a_first=3.0, gamma=1.0), text=TEXT, start=first)
    assert second.recipe["start"] == first.digest()
    assert second.recipe["gamma"] == 1.0 and second.digest() != first.digest()


def test_a_gate_that_goes_on_keeps_its_rank_and_kind_in_its_file(tmp_path):
    start = Gate.load(gate_file(tmp_path, tiny.model(), propagate=True))
    found, _ = train_gate(tiny.model(), SETTINGS, text=TEXT, start=start)
    loaded = Gate.load(found.save(tmp_path / "onward"))
    assert loaded.propagate_in_depth and loaded.rank == start.rank == 8
    assert (loaded.recipe["propagate_in_depth"], loaded.recipe["rank"]) == (True, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.1}, "gamma, what a kept pair costs, is at least 0; got -0.1"),
        ({"gamma": math.nan}, "gamma"),
        ({"steps": 0}, "steps is at least 1"),
        ({"delay": 6}, "delay is from 0 to below"),
        ({"a_first": 0.5}, "a rises from at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
        ({"length": 1}, "length is 2 to 320"),
        ({"length": 300, "steps": 1}, "the text has 4 tokens, fewer than one stretch of 300"),
    ],
)
def test_settings_out_of_range_and_text_too_short_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train_gate(tiny.model(), dataclasses.replace(SETTINGS, **settings), text="four")
