"""A policy's file, and the method that reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, methods
from sparsity_core.methods.weights.prunenet.find import find_policy
from sparsity_core.methods.weights.prunenet.policy import Policy
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.spectrum import Gram, ks_distance
from tests import tiny
from tests.methods.policies import VARIANTS, cancelling, equal, trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_comes_back_from_its_file(variant, tmp_path):
    path = trained(variant).save(tmp_path / "deep" / "p.safetensors")
    back = Policy.load(path)
    assert equal(back, trained(variant)) and back.dims == (96, 64) and back.variant == variant
    block = feed_forwards(tiny.model())[1]
    assert torch.equal(back.scores(block), trained(variant).scores(block))


def test_a_damaged_changed_or_missing_file_is_refused(tmp_path):
    path = trained().save(tmp_path / "p.safetensors")
    card, data = path.with_suffix(".json").read_text(), path.read_bytes()
    path.write_bytes(data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    with pytest.raises(ValueError, match=r"is not the file that p\.json was written with: train it again"):
        Policy.load(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is not the file"):
        Policy.load(path)
    path.write_bytes(data)
    for wrong in (card[:200], "[]", "{}"):
        path.with_suffix(".json").write_text(wrong)
        with pytest.raises(ValueError, match="train it again"):
            Policy.load(path)
    path.with_suffix(".json").write_text(json.dumps({**json.loads(card), "dims": [96, 32]}))
    with pytest.raises(ValueError, match="does not hold what its recipe says"):
        Policy.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="there is no policy"):
        Policy.load(path)
    with pytest.raises(ValueError, match="two files"):
        Policy.load(tmp_path / "p.pt")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_serves_another_model_of_equal_size_at_another_ratio(variant, tmp_path):
    path = trained(variant).save(tmp_path / "a policy's file.safetensors")
    method = methods.PruneNet(ratio=0.5, policy=str(path))
    compressed = method.compress(tiny.model("qwen2"))
    assert [len(kept) for kept in compressed.kept] == [48, 48, 48]
    narrower = methods.PruneNet(ratio=0.75, policy=str(path)).compress(tiny.model("qwen2"))
    assert all(set(few) < set(many) for few, many in zip(narrower.kept, compressed.kept, strict=True))
    own = methods.PruneNet(policy=str(path)).compress(tiny.model())
    assert all(np.array_equal(np.flatnonzero(k), kept) for k, kept in zip(trained(variant).kept, own.kept, strict=True))


def test_a_policy_of_other_dimensions_is_refused(tmp_path):
    path = trained().save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="96 neurons over 64 channels and layer 0 has 256 over 64: train one"):
        methods.PruneNet(policy=str(path)).compress(tiny.model("gpt2"))


def test_a_path_survives_the_pipelines_spelling():
    for path in ("/a b/it's (one).safetensors", r"C:\policies\p.safetensors", 'x"y', "auto"):
        pipeline = Pipeline(weights=methods.PruneNet(ratio=0.3, variant="official", policy=path))
        assert Pipeline.parse(str(pipeline)) == pipeline
    assert str(methods.PruneNet()) == "prunenet(ratio=0.25)"
    for wrong in ("prunenet(policy=3)", "prunenet(policy='')", "prunenet(variant=paper)"):
        with pytest.raises(ValueError, match="prunenet: "):
            Pipeline.parse(f"weights={wrong}")


def test_auto_trains_once_and_keeps_what_it_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    first = methods.PruneNet().compress(tiny.model())
    (stored,) = (tmp_path / "policies").glob("*.safetensors")
    assert not stored.with_suffix(".part").exists()
    told: list[str] = []
    again = find_policy(tiny.model(), "corrected", progress=lambda share, doing: told.append(doing))
    assert not told
    assert all(np.array_equal(np.flatnonzero(k), kept) for k, kept in zip(again.kept, first.kept, strict=True))
    stored.write_bytes(b"damaged")
    stored.with_suffix(".part").write_bytes(b"damaged too")
    assert equal(find_policy(tiny.model(), "corrected"), again)


@pytest.mark.slow
def test_the_shipped_policy_moves_the_spectra_less_than_row_norm_and_leverage(smollm):
    policy = find_policy(smollm, "corrected", progress=cancelling(1))  # it ships, so nothing is trained
    blocks = feed_forwards(smollm)
    choices = {
        "policy": policy.scores,
        "row_norm": methods.RowNorm().importance,
        "leverage": methods.Leverage().importance,
        "random": methods.RandomNeurons(seed=0).importance,
    }
    distances: dict[str, list[float]] = {name: [] for name in choices}
    for block in blocks:
        gram = Gram(block.first)
        before = gram.singular_values()
        for name, importance in choices.items():
            kept = torch.zeros(block.n_neurons, dtype=torch.bool)
            kept[importance(block).topk(1152).indices] = True
            distances[name].append(ks_distance(before, gram.singular_values(kept)).statistic)
    mean = {name: np.mean(values) for name, values in distances.items()}
    assert mean["policy"] < mean["leverage"] < mean["row_norm"] < mean["random"]
    history = policy.recipe["history"]
    assert mean["policy"] == pytest.approx(min(np.mean(ks) for ks in history["ks"]), abs=1e-5)
    assert np.mean(history["sampled_ks"][-1]) < np.mean(history["sampled_ks"][0])
