"""Recovery: the loss falls, the export is plain, what is cut stays cut, and nothing that was given changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import methods
from sparsity_core.weights.activations import next_token_loss
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.recovery import recover
from tests import tiny
from tests.methods.test_weight_comparators import digest, hooks, logits

LESSON = "the cat sat on the mat, and the dog sat on the log. " * 8
CUT = methods.RandomNeurons(ratio=0.4)


def loss_of(model) -> float:
    with torch.no_grad():
        return float(next_token_loss(model, torch.tensor(model.encode_all(LESSON)[:96])))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_falls_and_the_export_is_plain(family, tmp_path):
    compressed = tiny.model(family, torch.float32).compress(CUT)
    before = [digest(m.hf) for m in (compressed.base, compressed.model)]
    recovered = recover(compressed, text=LESSON, steps=8, length=64)
    assert loss_of(recovered.model) < loss_of(compressed.model)
    assert [digest(m.hf) for m in (compressed.base, compressed.model)] == before
    assert all(hooks(m.hf) == 0 for m in (compressed.base, compressed.model, recovered.model))
    assert not any(p.requires_grad for m in (compressed.model, recovered.model) for p in m.hf.parameters())
    assert recovered.model.hf.state_dict().keys() == compressed.model.hf.state_dict().keys()
    recovered.save_pretrained(tmp_path / "out", report=recovered.report(text=tiny.TEXT))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False, dtype=torch.float32)
    loaded.eval().set_attn_implementation(recovered.model.hf.config._attn_implementation)
    assert torch.equal(logits(loaded), logits(recovered.model.hf))


def test_the_report_says_what_was_trained():
    compressed = tiny.model("llama", torch.float32).compress(CUT)
    heard: list[str] = []
    recovered = recover(compressed, text=LESSON, steps=3, length=32, progress=lambda share, doing: heard.append(doing))
    assert recovered.extra["recovery"]["steps"] == len(recovered.extra["recovery"]["losses"]) == 3
    assert recovered.extra["recovery"]["text"] == "given"
    assert heard[0] == "step 1 of 3" and "loss" in heard[1]
    assert recovered.true_cut == compressed.true_cut
    assert all((a == b).all() for a, b in zip(recovered.kept, compressed.kept, strict=True))
    again = recover(compressed, text=LESSON, steps=3, length=32)
    assert torch.equal(logits(again.model.hf), logits(recovered.model.hf))


def test_what_only_fills_a_layer_up_stays_nought():
    compressed = tiny.model("llama", torch.float32).compress(methods.RowNorm(ratio=0.4, allocation="equal_ks"))
    recovered = recover(compressed, text=LESSON, steps=4, length=48)
    widths = [len(kept) for kept in compressed.kept]
    assert min(widths) < max(widths)
    for block, old, kept in zip(
        feed_forwards(recovered.model), feed_forwards(compressed.model), compressed.kept, strict=True
    ):
        for name, weight in block.matrices.items():
            assert (weight[len(kept) :] == 0).all()
            assert not torch.equal(weight, old.matrices[name])


def test_heads_that_were_silenced_stay_silent():
    method = methods.HeadPruning(ratio=0.5, importance="norm")
    compressed = tiny.model("gpt2", torch.float32).compress(method)
    recovered = recover(compressed, text=LESSON, steps=4, length=48)
    for layer, kept in zip(tiny.layers(recovered.model.hf), compressed.extra["kept_heads_by_layer"], strict=True):
        alive = layer.attn.c_proj.weight.unflatten(0, (4, 16)).abs().sum((1, 2)) > 0
        assert np.flatnonzero(alive.numpy()).tolist() == kept


def test_distillation_brings_the_distributions_together():
    compressed = tiny.model("llama", torch.float32).compress(CUT)
    recovered = recover(compressed, text=LESSON, steps=8, length=64, distil=True)
    ids = torch.tensor([compressed.model.encode_all(LESSON)[:96]])

    def divergence(model) -> float:
        with torch.inference_mode():
            p, q = (m.hf(input_ids=ids).logits[0].double().log_softmax(-1) for m in (compressed.base, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert divergence(recovered.model) < divergence(compressed.model)
    first = recovered.extra["recovery"]["losses"][0]
    assert first > 0


def test_a_cancel_leaves_everything_as_it_was():
    compressed = tiny.model("llama", torch.float32).compress(CUT)
    before = [digest(m.hf) for m in (compressed.base, compressed.model)]

    def cancel(share: float, doing: str) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(compressed, text=LESSON, steps=4, length=32, progress=cancel)
    assert [digest(m.hf) for m in (compressed.base, compressed.model)] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps is at least 1"),
        ({"rank": 0}, "rank is at least 1"),
        ({"batch": 0}, "batch is at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
        ({"length": 400}, "2 to 320 tokens"),
        ({"text": "short"}, "fewer than one stretch"),
    ],
)
def test_settings_are_checked(settings, said):
    compressed = tiny.model("llama", torch.float32).compress(CUT)
    with pytest.raises(ValueError, match=said):
        recover(compressed, **{"text": LESSON, "length": 32, **settings})
