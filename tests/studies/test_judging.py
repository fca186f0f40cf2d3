"""Judges held against drops: effects and scores against plain eager models, correlations against scipy, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sparsity_core.studies import ALL_LAYERS, JudgeStudy, study_judges
from sparsity_core.studies.drops import Drop, effects_of
from sparsity_core.studies.judges import attention_to_come, mean_ranks, scores_of
from tests import tiny

IDS = np.random.default_rng(3).integers(0, 256, 40).tolist()
STEP = 25


def eager(family: str) -> Any:
    """The same weights in transformers' own eager attention, out of reach of our hook."""
    return tiny.transformer(family)


def log_probabilities(family: str, drop: Drop) -> torch.Tensor:
    """[queries after STEP, vocabulary] where the tokens of a drop are masked out of the layers' additive masks by hand."""
    plain = eager(family)

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if drop.layer in (ALL_LAYERS, module.layer_idx):
            own = kwargs["attention_mask"].clone()
            own[:, :, STEP + 1 :, list(drop.tokens)] = torch.finfo(own.dtype).min
            kwargs["attention_mask"] = own
        return args, kwargs

    for module in plain.modules():
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):
            module.register_forward_pre_hook(mask, with_kwargs=True)
    with torch.inference_mode():
        return torch.log_softmax(plain(torch.tensor([IDS[:-1]]), use_cache=False).logits[0, STEP + 1 :].double(), -1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "opt"])
def test_effects_are_those_of_a_mask_made_by_hand(family):
    drops = [Drop((4,)), Drop((20, 21, 22)), Drop((23,), 1), Drop((STEP,), 2), Drop(())]
    kl, nll = effects_of(tiny.model(family), IDS, STEP, drops)
    dense, following = log_probabilities(family, Drop(())), torch.tensor(IDS[STEP + 2 :])[:, None]
    for i, drop in enumerate(drops):
        other = log_probabilities(family, drop)
        expected = float((dense.exp() * (dense - other)).sum(-1).mean())
        added = float((dense.gather(1, following) - other.gather(1, following)).mean())
        np.testing.assert_allclose([kl[i], nll[i]], [expected, added], atol=1e-6, rtol=1e-4)
    assert (kl[:3] > 1e-4).all() and abs(kl[4]) < 1e-8


def test_effects_do_not_depend_on_what_else_is_in_the_batch(monkeypatch):
    drops = [Drop((token,), layer) for token in (1, 9) for layer in (ALL_LAYERS, 0)]
    together = effects_of(tiny.model(), IDS, STEP, drops)
    monkeypatch.setattr("sparsity_core.studies.drops._ROWS", 1)
    np.testing.assert_allclose(together, effects_of(tiny.model(), IDS, STEP, drops), atol=1e-9)


def attention(family: str, n: int) -> np.ndarray:
    """[L, Hkv, query, key] of the eager model over the first n tokens, summed over a KV head's query heads."""
    with torch.inference_mode():
        found = eager(family)(torch.tensor([IDS[:n]]), output_attentions=True, use_cache=False).attentions
    heads = torch.cat(found)
    return heads.unflatten(1, (tiny.model(family).arch.n_kv_heads, -1)).sum(2).numpy()


def test_an_eviction_method_judges_by_its_own_sum():
    own = attention("llama", STEP + 1)
    weights = 0.9 ** np.arange(STEP, -1, -1)
    for judge, expected in (
        ("eviction=a2sf(forgetting_factor=0.9)", (own * weights[:, None]).sum(2)),
        ("eviction=h2o", own.sum(2)),
        ("eviction=tova", own[:, :, -1]),
    ):
        scores = scores_of(tiny.model(), IDS[: STEP + 1], judge)
        known = ~np.isnan(scores)
        assert known.sum() >= scores.size - scores.shape[0] * scores.shape[1]
        np.testing.assert_allclose(scores[known], expected[known], atol=1e-5)


def test_a_selection_method_judges_by_its_last_query():
    scores = scores_of(tiny.model(), IDS[: STEP + 1], "decode=oracle_top_k")
    np.testing.assert_allclose(scores, attention("llama", STEP + 1)[:, :, -1], atol=1e-5)


def test_what_is_to_come_is_the_attention_of_the_queries_after_the_step():
    expected = attention("llama", len(IDS) - 1)[:, :, STEP + 1 :, : STEP + 1].sum(2)
    np.testing.assert_allclose(attention_to_come(tiny.model(), IDS[:-1], STEP), expected, atol=1e-5)


def test_ranks_by_hand():
    scores = np.array([[[3.0, np.nan, 1.0, 2.0], [1.0, 1.0, 5.0, 0.0]]])
    np.testing.assert_allclose(mean_ranks(scores), np.array([[(3 + 1.5), (0 + 1.5), (1 + 3), (2 + 0)]]) / 3 / 2)


def test_a_study_says_who_knows_and_whom_it_left_out():
    judges = ["eviction=h2o", "eviction=local_window", "gate=dcp", "decode=quest(page=4)"]
    study = study_judges(tiny.model(), IDS, STEP, drops=12, horizon=10, layers=[0, 2], judges=judges)
    assert study.judges == ("eviction=h2o(budget=256)", "decode=quest(tokens=0.25, page=4)", "attention to come")
    assert [judge.partition("=")[2].partition("(")[0] for judge, _ in study.left_out] == ["local_window", "dcp"]
    assert "by position alone" in study.left_out[0][1]
    assert (study.step, study.horizon, study.width, study.places.tolist()) == (STEP, 10, 1, [ALL_LAYERS, 0, 2])
    assert len(set(study.keys.tolist())) == 12 and study.keys.max() <= STEP
    assert study.ranks.shape == (3, 3, 12) and study.kl.shape == study.nll.shape == (3, 12)
    np.testing.assert_allclose(study.ranks[0, 0], np.nan_to_num(study.ranks[0, 0]))
    again = study_judges(tiny.model(), IDS, STEP, drops=12, horizon=10, layers=[2], judges=judges[:1])
    np.testing.assert_allclose(again.kl[1], study.kl[2], atol=1e-7)  # the same seed, the same drops
    for effect in ("kl", "nll"):
        rho, (low, high) = study.rho(effect), study.interval(effect)
        found = getattr(study, effect)
        for j in range(3):
            for p in range(3):
                assert rho[j, p] == pytest.approx(spearmanr(study.ranks[j, p], found[p]).statistic)
        assert (low < rho).all() and (rho < high).all() and (low >= -1).all() and (high <= 1).all()
    assert "Judges of 12 drops from all layers" in study._repr_html_()


def test_spans_leave_together_and_are_ranked_by_their_mean():
    study = study_judges(tiny.model(), IDS, STEP, drops=6, width=4, layers=[], judges=["eviction=tova"])
    assert (study.keys % 4 == 0).all() and study.width == 4 and study.places.tolist() == [ALL_LAYERS]
    ranks = mean_ranks(scores_of(tiny.model(), IDS[: STEP + 1], "eviction=tova")).mean(0)
    expected = [ranks[key : key + 4].mean() for key in study.keys]
    np.testing.assert_allclose(study.ranks[0, 0], expected, atol=1e-6)
    kl, _ = effects_of(tiny.model(), IDS, STEP, [Drop(tuple(range(key, key + 4))) for key in study.keys])
    np.testing.assert_allclose(study.kl[0], kl, atol=1e-7)


def test_a_perfect_judge_by_hand():
    study = JudgeStudy(
        step=9, width=1, horizon=4, keys=np.arange(5, dtype=np.int32), places=np.array([ALL_LAYERS], np.int32),
        kl=np.array([[0.1, 0.2, 0.3, 0.5, 0.4]], np.float32), nll=np.zeros((1, 5), np.float32), noise=0.0,
        judges=("knows", "errs"), ranks=np.array([[[0, 1, 2, 4, 3]], [[0, 1, 2, 3, 4]]], np.float32), left_out=(),
    )  # fmt: skip
    np.testing.assert_allclose(study.rho(), [[1.0], [0.9]])
    assert np.isnan(study.rho("nll")).all()  # no effect, no correlation
    low, high = study.interval()
    error = np.sqrt((1 + 0.9**2 / 2) / 2)
    np.testing.assert_allclose([low[1, 0], high[1, 0]], np.tanh(np.arctanh(0.9) + np.array([-1.96, 1.96]) * error))
    assert np.isnan(
        dataclasses.replace(study, keys=study.keys[:3], kl=study.kl[:, :3], ranks=study.ranks[..., :3]).rho()
    ).all()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"drops": 3}, "at least 4 drops"),
        ({"width": 9}, "1 to 6 neighbouring tokens"),
        ({"layers": [3]}, "layers 0 to 2; got 3"),
        ({"step": 38}, "2 after it"),
        ({"step": 3}, "at least 8"),
        ({"horizon": 0}, "2 after it"),
        ({"judges": ["weights=row_norm(ratio=0.5)"], "layers": []}, None),
        ({"judges": ["eviction=h3o"]}, "h2o"),
    ],
)
def test_what_cannot_be_studied_is_a_sentence(asked, said):
    ask = {"step": STEP, "drops": 4, **asked}
    if said is None:
        study = study_judges(tiny.model(), IDS, **ask)
        assert "one method that evicts, gates or selects" in study.left_out[0][1]
        return
    with pytest.raises(ValueError, match=said):
        study_judges(tiny.model(), IDS, **ask)


def test_it_is_cancelled_between_batches():
    def stop(share: float, doing: str) -> None:
        if "drop" in doing:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        study_judges(tiny.model(), IDS, STEP, layers=[], judges=[], progress=stop)
