"""Cutting neurons: what stays is what was asked, the rest of the model is untouched, and others can load the result."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.cli.main import main
from sparsity_core.models.loading import wrap
from sparsity_core.models.refusals import ModelError
from sparsity_core.weights.ffn import NeuronCut, feed_forwards, without_neurons
from sparsity_core.weights.neurons import kept_count
from tests import tiny

TEXT = tiny.TEXT
GATED = [family for family in tiny.FAMILIES if family not in ("phi", "gpt2", "opt")]


def logits(hf, n: int = 24) -> torch.Tensor:
    with torch.inference_mode():
        return hf(input_ids=torch.tensor([tiny.ids(n)]), use_cache=False).logits


def weights_of(hf) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in hf.state_dict().items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_ratio_of_nought_is_the_same_model(family):
    model = tiny.model(family)
    compressed = model.compress(methods.RowNorm(ratio=0.0))
    assert torch.equal(logits(compressed.model.hf), logits(model.hf))
    assert compressed.true_cut == 0
    assert all(item.ks == 0 for item in compressed.spectra)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_cut_is_the_model_with_those_neurons_silenced(family):
    """An oracle of its own: the whole model with the cut neurons' columns of the down projection set to nought."""
    model = tiny.model(family)
    compressed = model.compress(methods.RandomNeurons(ratio=0.3, seed=3))
    silenced = tiny.transformer(family)
    for layer, kept in zip(tiny.layers(silenced), compressed.kept, strict=True):
        names = dict(layer.named_modules())
        down = next(names[n] for n in ("mlp.down_proj", "mlp.fc2", "mlp.c_proj", "fc2") if n in names)
        n = down.weight.shape[0] if family == "gpt2" else down.weight.shape[1]
        gone = np.setdiff1d(np.arange(n), kept)
        assert len(kept) == round(0.7 * n)
        if family == "gpt2":
            down.weight[gone] = 0
        else:
            down.weight[:, gone] = 0
    torch.testing.assert_close(
        logits(compressed.model.hf), logits(silenced), atol=1e-5, rtol=1e-4
    )  # eager softmax is float32


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_shared_model_is_left_alone(family):
    hf = tiny.transformer(family)
    model = wrap(hf, tiny.tokenizer(), "own")
    before, config = weights_of(hf), hf.config.to_dict()
    compressed = model.compress(methods.ColumnNorm(ratio=0.5))
    after = weights_of(hf)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hf.config.to_dict() == config
    outside = [n for n in compressed.model.hf.state_dict() if "mlp" not in n and "fc" not in n]
    pointers = {n: t.data_ptr() for n, t in hf.state_dict().items()}
    assert outside
    assert all(compressed.model.hf.state_dict()[n].data_ptr() == pointers[n] for n in outside)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_export_loads_with_no_code_of_ours_and_gives_the_same_logits(family, tmp_path):
    model = wrap(tiny.transformer(family, torch.float32), tiny.tokenizer(), f"tiny-{family}")
    compressed = model.compress(methods.RowNorm(ratio=0.25))
    folder = compressed.save_pretrained(tmp_path / "out", report=compressed.report(text=TEXT))
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    if family in tiny.WITHOUT_SDPA:
        torch.testing.assert_close(logits(loaded), logits(compressed.model.hf), atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(logits(loaded), logits(compressed.model.hf))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.hf.parameters())
    assert not list(folder.glob("*.py")) + list(folder.glob("*.bin"))


def test_the_report_card_says_what_was_cut_and_what_it_cost(tmp_path):
    compressed = tiny.model().compress(methods.RandomNeurons(ratio=0.25, seed=1))
    report = compressed.report(text=TEXT)
    folder = compressed.save_pretrained(tmp_path / "out", report=report)
    stored = json.loads((folder / "report.json").read_text())
    assert stored == report
    assert set(report["ks_by_layer"]) == {"gate", "up", "down"}
    assert len(report["ks_by_layer"]["up"]) == 3
    blocks = [b.n_neurons * 3 * 64 for b in feed_forwards(tiny.model())]
    whole = sum(p.numel() for p in tiny.model().hf.parameters())
    assert report["true_cut_of_model"] == pytest.approx(0.25 * sum(blocks) / whole, abs=1e-6)
    assert report["calibrated"] is False
    assert "no BOS" in report["perplexity_convention"]
    card = (folder / "REPORT.md").read_text()
    assert "random_neurons(ratio=0.25, seed=1)" in card
    assert f"{report['perplexity_after']:.3f}" in card


def test_spectra_before_and_after_are_numpys(tmp_path):
    model = tiny.model()
    compressed = model.compress(methods.RandomNeurons(ratio=0.4, seed=2))
    blocks = feed_forwards(model)
    for item in compressed.spectra:
        weight = blocks[item.layer].matrices[item.matrix].numpy()
        kept = compressed.kept[item.layer]
        np.testing.assert_allclose(item.before, np.linalg.svd(weight, compute_uv=False), atol=1e-8)
        np.testing.assert_allclose(item.after, np.linalg.svd(weight[kept], compute_uv=False), atol=1e-8)
        assert (item.after <= item.before[: len(item.after)] + 1e-9).all()  # interlacing


def test_layers_of_different_width_are_filled_with_neurons_that_do_nothing():
    model = tiny.model()
    cuts = [NeuronCut(torch.arange(n)) for n in (10, 96, 50)]
    hf, notes = without_neurons(model, cuts)
    assert hf.config.intermediate_size == 96
    assert "zeros" in notes[0]
    gated = tiny.layers(hf)[0].mlp
    assert gated.gate_proj.weight.shape == (96, 64)
    assert not gated.gate_proj.weight[10:].any()
    assert not gated.down_proj.weight[:, 10:].any()


def test_equal_ks_moves_every_layer_by_the_same_distance_and_keeps_the_mean_ratio():
    compressed = tiny.model().compress(methods.RowNorm(ratio=0.4, allocation="equal_ks"))
    ratios = [1 - len(kept) / 96 for kept in compressed.kept]
    assert np.mean(ratios) == pytest.approx(0.4, abs=1 / 96)
    uneven = [s.ks for s in tiny.model().compress(methods.RowNorm(ratio=0.4)).spectra if s.matrix == "gate"]
    distances = [s.ks for s in compressed.spectra if s.matrix == "gate"]
    assert np.ptp(distances) <= np.ptp(uneven) + 1 / 64


@pytest.mark.parametrize(
    ("n", "ratio", "multiple", "kept"), [(96, 0.25, 1, 72), (96, 0.3, 8, 64), (96, 0.3, 64, 64), (10, 0.25, 1, 8)]
)
def test_kept_counts_are_rounded_to_the_multiple(n, ratio, multiple, kept):
    assert kept_count(n, ratio, multiple) == kept  # 67.2 → 64 and 64; 7.5 rounds to the even 8


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        methods.RowNorm(ratio=ratio)


def test_a_ratio_that_leaves_no_neuron_is_refused():
    with pytest.raises(ValueError, match="leaves none of 96 neurons"):
        tiny.model().compress(methods.RowNorm(ratio=0.999))


def test_damaged_weights_are_refused():
    hf = tiny.transformer("llama")
    model = wrap(hf, tiny.tokenizer(), "damaged")
    tiny.layers(hf)[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(ModelError, match="not finite in layer 1"):
        model.compress(methods.RowNorm(ratio=0.2))


def test_a_model_without_a_known_block_is_refused():
    hf = tiny.transformer("llama")
    model = wrap(hf, tiny.tokenizer(), "odd")
    for layer in tiny.layers(hf):
        layer.mlp.projection = layer.mlp.up_proj
        del layer.mlp.up_proj
    with pytest.raises(ModelError, match="no feed-forward block that is known"):
        model.compress(methods.RowNorm(ratio=0.2))


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    compressed = tiny.model().compress(methods.RowNorm(ratio=0.2))
    report = compressed.report(text=TEXT)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        compressed.save_pretrained(tmp_path / "out", report=report)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    compressed = tiny.model().compress(methods.RowNorm(ratio=0.2))
    with pytest.raises(ValueError, match="exists already"):
        compressed.save_pretrained(tmp_path / "out", report={})
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pruned_model_runs_under_eviction_and_is_held_against_the_whole_one(family):
    model = tiny.model(family)
    pipeline = Pipeline(weights=methods.RowNorm(ratio=0.5), eviction=methods.A2SF(budget=12))
    trace = run(model, TEXT, pipeline)
    alone = run(model.compress(methods.RowNorm(ratio=0.5)).model, TEXT, Pipeline(eviction=methods.A2SF(budget=12)))
    dense = run(model, TEXT)
    np.testing.assert_array_equal(trace.evicted_at, alone.evicted_at)
    np.testing.assert_allclose(trace.nll[:-1], alone.nll[:-1], rtol=1e-5)
    np.testing.assert_allclose(trace.dense_nll[:-1], dense.nll[:-1], rtol=1e-5)
    np.testing.assert_allclose(trace.regret, alone.regret, atol=1e-6)
    assert trace.provenance.model == model.name
    assert trace.provenance.pipeline == str(pipeline)
    assert generate(model, TEXT, pipeline, max_new_tokens=3).trace.n_prompt == dense.n_tokens


def test_weights_alone_cost_something_and_evict_nothing():
    trace = run(tiny.model(), TEXT, Pipeline(weights=methods.RowNorm(ratio=0.5)))
    assert (trace.evicted_at == trace.n_tokens).all()
    assert not trace.regret.any()
    assert trace.kl_to_dense.max() > 0
    assert run(tiny.model(), TEXT, Pipeline(weights=methods.RowNorm(ratio=0.0))).kl_to_dense.max() < 1e-9


def test_the_command_line_compresses_and_refuses(tmp_path, capsys):
    source = tmp_path / "source"
    hf = tiny.transformer("llama", torch.float32)
    hf.save_pretrained(source)
    tiny.tokenizer().save_pretrained(source)
    capsys.readouterr()
    out = tmp_path / "cut"
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    common = ["compress", "--model", str(source), "--file", str(text), "--json", "--device", "cpu"]
    assert main([*common, "--weights", "row_norm(ratio=0.25)", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out)
    assert found["perplexity_after"] > 1
    assert AutoModelForCausalLM.from_pretrained(out).config.intermediate_size == 72
    assert main([*common, "--weights", "row_norm(ratio=0.25)", "--out", str(out)]) == 2
    assert "exists already" in json.loads(capsys.readouterr().out)["error"]
    assert main([*common, "--weights", "row_norm(ratio=1.0)", "--out", str(tmp_path / "x")]) == 2
    assert main([*common, "--weights", "row_nrm(ratio=0.5)", "--out", str(tmp_path / "x")]) == 2
    assert "row_norm" in capsys.readouterr().out
