"""Calibration of the outlier channels: sums over all blocks, by hand, and files that cannot be mistaken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sparsity_core.methods.decode.double_sparsity.calibration import calibrate, channels_for
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.models.texts import windows
from tests import tiny

PROSE = tiny.TEXT * 6


def captured(family: str, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(q [H, T, D], k [Hkv, T, D]) of each layer after the rotary embedding, as the attention function receives them."""
    from sparsity_core.models.seam import recording

    seen = []

    class Keep:
        def attend(self, call):
            seen.append((call.q[0].clone(), call.k[0].clone()))
            return torch.nn.functional.scaled_dot_product_attention(
                call.q, call.k, call.v, is_causal=True, enable_gqa=True
            )

    model = tiny.model(family)
    with recording(Keep()), torch.inference_mode():
        model.hidden(ids[None], use_cache=False)
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_statistics_equal_a_loop_over_blocks_tokens_and_pairs(family):
    model = tiny.model(family)
    found = calibrate(model, PROSE, blocks=3, length=12, seed=5)
    sums = {name: 0.0 for name in ("q", "k", "qk")}
    contributions = []
    for ids in windows(model, PROSE, count=3, length=12, seed=5):
        q, k = captured(family, ids)[1]
        group = q.shape[0] // k.shape[0]
        for head in (1,):
            own_q, own_k = q[head].numpy(), k[head // group].numpy()
            for t in range(12):
                sums["q"] += np.abs(own_q[t])
                sums["k"] += np.abs(own_k[t])
                sums["qk"] += np.abs(own_q[t] * own_k[t])
                contributions += [own_q[t] * own_k[s] for s in range(t + 1)]
    for name, value in sums.items():
        np.testing.assert_allclose(found.magnitudes[name][1, 1], value / 36, rtol=1e-5)
    np.testing.assert_allclose(found.magnitudes["variance"][1, 1], np.var(contributions, axis=0), rtol=1e-5)


def test_the_channels_of_a_kv_head_are_its_query_heads_together():
    found = calibrate(tiny.model(), PROSE, blocks=2, length=16)
    together = found.magnitudes["q"][0, :2].mean(0)  # 4 query heads share 2 KV heads
    np.testing.assert_allclose(found.per_kv_head("q")[0, 0], together, rtol=1e-6)
    order = found.order("q", 0)[0]
    assert (np.diff(together[order]) <= 0).all()
    assert sorted(order) == list(range(16))
    assert found.order("q", 0, per_head=True).shape == (4, 16)
    assert (found.overlap(found, "q", "q", 4) == 1).all()
    assert (found.overlap(found, "q", "k", 16) == 1).all()  # all channels are all channels


def test_a_calibration_comes_back_from_its_files(tmp_path):
    found = calibrate(tiny.model(), PROSE, blocks=2, length=16, seed=3)
    found.save(tmp_path / "own")
    again = Channels.load(tmp_path / "own")
    assert all(np.array_equal(found.magnitudes[s], again.magnitudes[s]) for s in STATISTICS)
    assert again.recipe == found.recipe
    assert json.loads((tmp_path / "own.json").read_text())["seed"] == 3
    again.check(tiny.model())


def test_what_is_damaged_missing_or_of_another_model_is_refused(tmp_path):
    found = calibrate(tiny.model(), PROSE, blocks=1, length=16)
    with pytest.raises(ValueError, match="of tiny-llama"):
        found.check(tiny.model("qwen2"))
    with pytest.raises(ValueError, match="no calibration at"):
        Channels.load(tmp_path / "none")
    found.save(tmp_path / "own")
    data = bytearray((tmp_path / "own.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "own.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        Channels.load(tmp_path / "own")


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("  \n", "empty"), ("short", "fewer than one stretch")])
def test_a_text_that_is_empty_or_too_short_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        calibrate(tiny.model(), text, length=64)


def test_a_model_without_a_calibration_is_calibrated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    first = channels_for(tiny.model())
    stored = list((tmp_path / "channels").glob("*.safetensors"))
    assert len(stored) == 1
    written = stored[0].stat().st_ino
    again = channels_for(tiny.model())
    assert stored[0].stat().st_ino == written
    assert np.array_equal(first.magnitudes["qk"], again.magnitudes["qk"])
    stored[0].write_bytes(b"half a file")
    assert np.array_equal(channels_for(tiny.model()).magnitudes["qk"], first.magnitudes["qk"])
