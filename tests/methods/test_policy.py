"""PruneNet's policy and its training: against finite differences and by hand, stopped and gone on with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, OPTConfig

from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.methods.weights.prunenet.layers import LayerSpectra
from sparsity_core.methods.weights.prunenet.training import (
    _Official,
    advantages,
    log_probability,
    optimiser_of,
    returns_to_go,
    train_policy,
)
from sparsity_core.methods.weights.prunenet.view import View
from sparsity_core.models.loading import wrap
from sparsity_core.models.model import Model
from sparsity_core.weights.ffn import feed_forwards
from tests import tiny
from tests.methods.policies import VARIANTS, Cancelled, cancelling, equal, trained


def ks_by_svd(weight: torch.Tensor, kept: np.ndarray) -> float:
    """D by numpy's decomposition and scipy's statistic."""
    before, after = (
        np.linalg.svd(w, compute_uv=False) for w in (weight.double().numpy(), weight[kept].double().numpy())
    )
    return float(ks_2samp(before, after, method="asymp").statistic)


def with_gate(change) -> Model:
    """A tiny model whose first matrices [n, d] were changed in place."""
    hf = tiny.transformer("llama")
    for layer in tiny.layers(hf):
        change(layer.mlp.gate_proj.weight)
    return wrap(hf, tiny.tokenizer(), "changed")


def test_plackett_luce_by_hand():
    # weights 1, 2, 3: the last first (3 of 6), then the first (1 of the 3 that are left)
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    found = log_probability(scores, torch.tensor([2, 0, 1]), 2)
    assert math.exp(found) == pytest.approx(3 / 6 * 1 / 3)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    assert float(log_probability(scores, orders, 3).exp().sum()) == pytest.approx(1.0)


def test_gradient_of_the_log_probability_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(7, generator=generator)
    assert torch.autograd.gradcheck(lambda s: log_probability(s, order, 4), scores)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    short = scores.detach()[:4].requires_grad_()
    chances = log_probability(short, orders, 2)
    (mean,) = torch.autograd.grad((chances.detach().exp() * chances).sum(), short)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)  # E ∇ log p = 0


def test_scores_of_the_corrected_policy_by_finite_differences_and_by_definition():
    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    view = View(weight)
    parameters = torch.randn(6 + 6, generator=torch.Generator().manual_seed(2))
    u = np.linalg.svd(weight.double().numpy(), full_matrices=False)[0] ** 2  # descending singular values
    bands = [part.sum(1) for part in np.array_split(u, 4, axis=1)]
    norm = np.log(np.linalg.norm(weight.double().numpy(), axis=1))
    raw = np.stack([norm, u.sum(1), *np.log(bands), *weight.double().numpy().T], 1)
    features = (raw - raw.mean(0)) / raw.std(0)
    features[:, 6:] /= 6
    expected = features @ parameters.double().numpy()
    np.testing.assert_allclose(view.scores(parameters).numpy(), expected, rtol=1e-4, atol=1e-5)
    pull = torch.randn(20, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(view.pullback(pull).numpy(), features.T @ pull.double().numpy(), rtol=1e-4, atol=1e-4)


def test_rows_that_are_all_alike_score_alike():
    view = View(torch.eye(5))  # as many rows as columns: every leverage is 1, every norm too
    assert view.summaries[:, :2].abs().max() == 0
    assert bool(torch.isfinite(view.scores(torch.ones(11))).all())
    assert bool(torch.isfinite(View(torch.zeros(9, 4)).scores(torch.ones(10))).all())


def test_the_official_policy_is_the_authors_formula_and_its_gradient():
    with LayerSpectra(tiny.model(), 0.25) as spectra:
        official = _Official(spectra, {"seed": 0, "episodes": 1}, lambda share, doing: None)
        n, d = spectra.dims
        parameters = official.start().parameters.double().requires_grad_()
        inner, bias, outer = parameters.split([n * d, n, n])
        weight = feed_forwards(tiny.model())[0].first
        logits = (weight @ inner.view(n, d).T + bias) @ outer
        pull = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (expected,) = torch.autograd.grad(logits @ pull, parameters)
        own = parameters.detach().float()
        view = spectra.views[0]
        torch.testing.assert_close(
            view.logits(official._collapsed(own)).double(), logits.detach(), rtol=1e-4, atol=1e-4
        )
        found = official._spread(own, view.pullback_logits(pull.float()))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("variant", "rate", "decay"), [("corrected", 0.15, 0.0), ("official", 1e-3, 0.01)])
def test_a_step_is_that_of_adamw(variant, rate, decay):
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(5, generator=generator)
    expected = parameters.double()
    first, second = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    optimiser = optimiser_of(parameters, variant)
    for t in range(1, 5):
        parameters.grad = torch.randn(5, generator=generator)
        optimiser.step()
        gradient = parameters.grad.double()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        expected = expected * (1 - rate * decay) - rate * move
    torch.testing.assert_close(parameters.double(), expected, rtol=1e-5, atol=1e-6)


def test_returns_and_advantages_by_hand():
    assert returns_to_go(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    # Two draws of two layers: each is the other's baseline, whatever a later layer brought.
    found = advantages(torch.tensor([[1.0, 5.0], [3.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[-2.0, 4.0], [2.0, -4.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected / math.sqrt(40 / 3))
    assert bool((advantages(torch.ones(3, 4)) == 0).all())


@dataclass(frozen=True)
class Given(NeuronMethod):
    """Importance 0.8, 0.3, 0.9, 0.4."""

    name: ClassVar[str] = "given_in_a_test"
    source: ClassVar[str] = "notes"

    def importance(self, block):
        return torch.tensor([0.8, 0.3, 0.9, 0.4])


def test_the_notes_example_drops_the_second_row_and_column():
    w_up = torch.tensor([[1.2, -0.5, 2.3, 0.7], [-0.7, 1.5, -1.2, 3.1], [0.4, -2.1, 0.9, 1.3], [-1.5, 0.8, 2.7, -0.4]])
    w_down = torch.arange(16.0).view(4, 4)
    config = OPTConfig(
        vocab_size=258, hidden_size=4, ffn_dim=4, num_attention_heads=1, num_hidden_layers=1, word_embed_proj_dim=4,
        max_position_embeddings=32, bos_token_id=None, eos_token_id=tiny.END, pad_token_id=tiny.PAD,
    )  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    (layer,) = tiny.layers(hf)
    layer.fc1.weight.copy_(w_up)
    layer.fc2.weight.copy_(w_down)
    compressed = Given(ratio=0.25).compress(wrap(hf, tiny.tokenizer(), "notes"))
    assert compressed.kept[0].tolist() == [0, 2, 3]
    (block,) = feed_forwards(compressed.model)
    assert torch.equal(block.up, w_up[[0, 2, 3]])
    assert torch.equal(block.down, w_down[:, [0, 2, 3]])
    by_name = {item.matrix: item for item in compressed.spectra}
    assert by_name["up"].ks == pytest.approx(ks_by_svd(w_up, compressed.kept[0]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_decides_everything(variant):
    again = train_policy(tiny.model(), variant=variant, seed=0, episodes=3)
    assert equal(again, trained(variant))
    assert not torch.equal(trained(variant, seed=1).parameters, again.parameters)


def test_what_is_kept_is_the_best_seen_and_not_the_last():
    lasts = []
    for seed in range(3):
        policy = trained(seed=seed)
        history = policy.recipe["history"]
        seen = {name: np.mean(ks) for name, ks in history["ks_of_starts"].items()}
        seen |= {episode: np.mean(ks) for episode, ks in enumerate(history["ks"], 1)}
        blocks = feed_forwards(tiny.model())
        own = [ks_by_svd(b.first, kept.numpy()) for b, kept in zip(blocks, policy.kept, strict=True)]
        assert np.mean(own) == pytest.approx(min(seen.values()), abs=1e-5)
        lasts.append(np.mean(history["ks"][-1]) - np.mean(own))
    assert max(lasts) > 1e-3  # some last one was worse, so keeping the best made a difference


def test_the_history_has_every_layer_of_every_episode():
    for variant in VARIANTS:
        recipe = trained(variant).recipe
        assert np.shape(recipe["history"]["ks"]) == np.shape(recipe["history"]["reward"]) == (3, 3)
        assert recipe["fingerprint"] == tiny.model().fingerprint


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_spectrum_that_does_not_move_is_rewarded_by_the_floor(variant):
    policy = train_policy(with_gate(torch.nn.init.zeros_), variant=variant, episodes=2)
    assert np.max(policy.recipe["history"]["ks"]) == 0.0
    assert set(np.ravel(policy.recipe["history"]["reward"])) == {64.0}  # the smaller side of 96 × 64
    assert bool(policy.parameters.isfinite().all())


def test_neurons_of_zeros_go_first():
    model = with_gate(lambda gate: gate[10:34].zero_())  # 24 of 96: the ratio
    policy = train_policy(model, episodes=2)
    assert not policy.kept[:, 10:34].any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("after", [2, 14, 20])  # in the first pass, and in later episodes
def test_a_cancelled_training_goes_on_as_if_nothing_had_happened(variant, after, tmp_path):
    checkpoint = tmp_path / "training.part"
    while True:
        try:
            policy = train_policy(
                tiny.model(), variant=variant, episodes=3, progress=cancelling(after), checkpoint=checkpoint
            )
            break
        except Cancelled:
            if after == 2:
                assert not checkpoint.exists()
            after = 10_000
    assert equal(policy, trained(variant))
    # Until the policy is saved the checkpoint is what a killed process goes on from.
    assert equal(train_policy(tiny.model(), variant=variant, episodes=3, checkpoint=checkpoint), policy)


def test_a_training_that_goes_on_does_not_start_again(tmp_path):
    told = []
    checkpoint = tmp_path / "training.part"
    with pytest.raises(Cancelled):
        train_policy(tiny.model(), episodes=3, progress=cancelling(6 + 3 + 6 + 1), checkpoint=checkpoint)
    assert checkpoint.exists()
    train_policy(
        tiny.model(), episodes=3, progress=lambda share, doing: told.append((share, doing)), checkpoint=checkpoint
    )
    assert told[0][1].startswith("episode 2")
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_a_checkpoint_that_is_not_this_training_is_refused(tmp_path):
    checkpoint = tmp_path / "training.part"
    with pytest.raises(Cancelled):
        train_policy(tiny.model(), episodes=3, progress=cancelling(17), checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"with ratio 0\.25, not 0\.5: delete it"):
        train_policy(tiny.model(), ratio=0.5, episodes=3, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match="delete it to start again"):
        train_policy(tiny.model(), episodes=3, checkpoint=checkpoint)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="one of corrected, official"):
        train_policy(tiny.model(), variant="paper")
    with pytest.raises(ValueError, match="at least 1"):
        train_policy(tiny.model(), episodes=0)
    with pytest.raises(ValueError, match="share removed"):
        train_policy(tiny.model(), ratio=1.0)
