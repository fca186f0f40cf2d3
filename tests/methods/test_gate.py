"""Dynamic context pruning: the sparse sigmoid, the gate against loops and physical dropping, its training and its files."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from entmax import entmax_bisect
from sparselens_kernels import NEVER, evict_scan, flash_column_score, gate_drops, gated_attention

import sparsity_core.methods.gate.dcp.training as gate_training
from sparsity_core import Pipeline, Trace, generate, run
from sparsity_core.kinds.rules import parse_rules, ruled
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.methods.gate.dcp.sigmoid import log_keep, log_sparse_sigmoid
from sparsity_core.methods.gate.dcp.training import SoftGate, train_gate
from sparsity_core.models import seam as seam
from sparsity_core.models.loading import wrap
from sparsity_core.models.seam import recording
from sparsity_core.studies.gate import look_at_gate
from tests import oracles, tiny
from tests.inference.every import same, same_traces
from tests.kernels.backends import DEVICE, both_backends
from viz.strip import strip_table

SHARPNESS = [1.0, 1.00001, 1.001, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0]
TEXT = "In 1969 two people walked on the Moon, and a third one waited above. " * 8


def p_of(x, a):
    return log_sparse_sigmoid(x, a).exp()


@pytest.mark.parametrize("a", SHARPNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sparse_sigmoid_solves_its_equation(a, dtype):
    x = torch.cat([torch.linspace(-4, 4, 4001), torch.linspace(-0.2, 0.2, 4001)]).to(dtype)
    p, b = p_of(x, a), a - 1.0
    assert p.isfinite().all()
    if b == 0.0:
        torch.testing.assert_close(p, torch.sigmoid(x))
        return
    inside = (p > 0) & (p < 1)
    assert (p[x >= 1 / b] == 1).all() and (p[x <= -1 / b] == 0).all()
    found = (p.double() ** b - (1 - p.double()) ** b) / b
    slope = p.double() ** (b - 1) + (1 - p.double()) ** (b - 1)  # of x in p: what rounding p to its dtype costs
    rounding = 8 * torch.finfo(dtype).eps * slope.clamp_min(1) + 1e-15 / b  # the last is of the check itself
    assert ((found - x.double()).abs() <= rounding)[inside].all()
    assert (p.diff()[:4000] >= 0).all()


@pytest.mark.parametrize("a", [1.001, 1.1, 1.5, 2.0, 3.0])
def test_the_sparse_sigmoid_is_entmax_of_two_classes(a):
    """Of larger a entmax's own bisection is the less exact: its probabilities are the (a − 1)-th roots of differences."""
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    theirs = entmax_bisect(torch.stack([x, torch.zeros_like(x)], -1), alpha=a, n_iter=80)[:, 0]
    torch.testing.assert_close(p_of(x, a), theirs, rtol=0, atol=1e-9)


def test_the_sparse_sigmoid_by_hand():
    """a = 2 is the clipped line (x + 1) / 2; a = ∞ the step; at 0 every one is 1/2."""
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(p_of(x, 2.0), torch.tensor([0, 0, 0.25, 0.5, 0.625, 1, 1], dtype=torch.float64))
    assert p_of(x, math.inf).tolist() == [0, 0, 0, 0, 1, 1, 1]
    for a in SHARPNESS:
        assert float(p_of(torch.zeros(1, dtype=torch.float64), a)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="a ≥ 1"):
        log_sparse_sigmoid(x, 0.5)


@pytest.mark.parametrize("a", SHARPNESS)
def test_its_gradient_is_the_finite_difference(a):
    draw = torch.Generator().manual_seed(3)
    x = (torch.rand(5, 5, generator=draw, dtype=torch.float64) - 0.5) * 0.2  # inside the support of every a
    assert torch.autograd.gradcheck(lambda y: log_keep(y, a).exp(), x.requires_grad_())


@pytest.mark.parametrize("a", SHARPNESS)
def test_keeps_are_the_papers_products_and_never_nan(a):
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(13, 13, generator=draw, dtype=torch.float64, requires_grad=True)
    log_i = log_keep(x, a)

    def sigma(value):
        return float(p_of(torch.tensor(value, dtype=torch.float64), a))

    lower = torch.ones(13, 13, dtype=torch.float64).tril()
    torch.testing.assert_close(log_i.exp() * lower, oracles.gate_product(x.detach(), sigma))
    (log_i.exp().sum() + torch.softmax(log_i.masked_fill(lower == 0, -math.inf), -1)[:, 0].sum()).backward()
    assert not log_i.isnan().any() and x.grad.isfinite().all()


@both_backends
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("n", "rank"), [(1, 4), (63, 16), (123, 24)])
def test_drops_are_those_of_one_pair_at_a_time(backend, n, rank, past):
    draw = torch.Generator().manual_seed(n)
    gate_q, gate_k = (torch.randn(2, n + past, rank, generator=draw) for _ in range(2))
    gate_q = gate_q / rank**0.5
    device = "cpu" if backend == "reference" else DEVICE
    found = gate_drops(
        gate_q[:, past:].to(device), gate_k.to(device), bias=2.0, start=past + 100, backend=backend
    ).cpu()
    for row in range(2):
        x = gate_q[row].double() @ gate_k[row].double().T + 2.0
        x[:past] = 1.0  # what came before drops nothing here
        expected = oracles.gate_step_by_step(x)
        shifted = torch.where(expected == NEVER, expected, expected + 100)
        assert (found[row] == shifted).all()
    assert n == 1 or ((found < NEVER).any() and (found == NEVER).any())


@both_backends
@pytest.mark.parametrize(("group", "dim", "n"), [(1, 64, 63), (3, 80, 123), (4, 128, 33)])
def test_gated_attention_is_a_softmax_over_what_is_left_under_padding_too(backend, group, dim, n):
    draw = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 2 * group, n, dim, generator=draw)
    k, v = (torch.randn(2, 2, n, dim, generator=draw) for _ in range(2))
    gate_q, gate_k = (torch.randn(2, n, 16, generator=draw) for _ in range(2))
    first = torch.tensor([0, 11])
    device = "cpu" if backend == "reference" else DEVICE
    given = [t.to(device) for t in (q, k, v, gate_q / 4, gate_k)]
    result = gated_attention(*given, bias=1.5, first_key=first.to(device), backend=backend)
    assert result.backend == backend
    for row, start in enumerate(first.tolist()):
        own = [t[row : row + 1, ..., start:, :] for t in (q, k, v)]
        x = gate_q[row, start:].double() / 4 @ gate_k[row, start:].double().T + 1.5
        dropped_at = oracles.gate_step_by_step(x)
        hidden = torch.arange(n - start)[:, None] >= dropped_at
        p = oracles.attention_probabilities(own[0], own[1])
        p = p.masked_fill(hidden, 0.0)
        expected = (p / p.sum(-1, keepdim=True)) @ own[2].double().repeat_interleave(group, 1)
        torch.testing.assert_close(result.out[row : row + 1, :, start:].cpu().double(), expected, rtol=0, atol=2e-5)
        alone = gated_attention(*(t[row : row + 1, ..., start:, :] for t in given), bias=1.5, backend=backend)
        torch.testing.assert_close(result.out[row, :, start:], alone.out[0], rtol=0, atol=1e-5)


@both_backends
def test_column_scores_count_what_a_key_is_given_while_it_is_seen(backend):
    draw = torch.Generator().manual_seed(5)
    q = torch.randn(1, 6, 63, 64, generator=draw)
    k, v = (torch.randn(1, 2, 63, 64, generator=draw) for _ in range(2))
    until = torch.randint(1, 80, (1, 2, 63), generator=draw).maximum(torch.arange(1, 64)).int()
    device = "cpu" if backend == "reference" else DEVICE
    result = flash_column_score(
        q.to(device), k.to(device), v.to(device), until=until.to(device), decay=0.9, backend=backend
    )
    hidden = torch.arange(63)[:, None] >= until[0, :, None, :]  # [Hkv, T, T]
    p = oracles.attention_probabilities(q, k).view(1, 2, 3, 63, 63).masked_fill(hidden[:, None], 0.0)
    p = p / p.sum(-1, keepdim=True)
    age = 0.9 ** torch.arange(62, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(result.score.cpu().double(), (p.sum(2) * age[:, None]).sum(2), rtol=0, atol=2e-5)


def test_a_scan_with_hidden_and_protected_keys_by_hand():
    """Uniform attention, unscored, budget 3: the oldest goes. Key 2 is hidden from query 4 on, key 0 is protected.

    query 3  holds 0 1 2 3: 1 is the oldest that may go
    query 4  holds 0 2 3 4: 2 is hidden, so it goes first
    query 5  holds 0 3 4 5: 3 goes
    """
    q = k = torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    v = torch.eye(6, dtype=torch.float64)[None, None]
    until = torch.full((1, 1, 6), NEVER, dtype=torch.int32)
    until[..., 2] = 4
    protected = torch.zeros(1, 1, 6, dtype=torch.bool)
    protected[..., 0] = True
    found = evict_scan(q, k, v, budget=3, recent=3, scored=False, until=until, protected=protected)
    assert found.evicted_at[0, 0].tolist() == [NEVER, 4, 5, 6, NEVER, NEVER]
    third, half = 1 / 3, 1 / 4
    assert found.out[0, 0, 4].tolist() == pytest.approx([third, 0, 0, third, third, 0])
    assert found.out[0, 0, 5].tolist() == pytest.approx([half, 0, 0, half, half, half])


def gate_file(tmp_path, model, *, bias=1.0, rank=8, seed=0, propagate=False):
    """A random gate that drops about a third, as a file."""
    draw = torch.Generator().manual_seed(seed)
    shape = (model.arch.n_layers, rank, model.arch.hidden_size)
    query, key = (0.15 * torch.randn(shape, generator=draw) for _ in range(2))
    made = Gate(
        query, key, torch.full((shape[0],), bias), propagate, {"model": model.name, "fingerprint": model.fingerprint}
    )
    return made.save(tmp_path / f"gate-{model.name}-{propagate}.safetensors")


def gated(path, *rest, **knobs):
    said = ", ".join(f"{name}={value!r}" for name, value in {"adapter": str(path), **knobs}.items())
    return Pipeline.parse(" ".join([f"gate=dcp({said})", *rest]))


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_simulated_dropping_is_physical_dropping_in_every_family(tmp_path, family, propagate):
    model = tiny.model(family)
    pipeline = gated(gate_file(tmp_path, model, propagate=propagate))
    check_simulation(model, pipeline)
    trace = run(model, tiny.ids(44), pipeline)
    with tiny.hidden_states(model.hf) as seen:
        run(model, tiny.ids(44), pipeline, against_dense=False)
    plain = tiny.transformer(family)
    with tiny.plain_attention(plain, [trace.keep(i) for i in range(3)]), tiny.hidden_states(plain) as expected:
        plain.base_model(torch.tensor([tiny.ids(44)]), use_cache=False)
    torch.testing.assert_close(seen[0], expected[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "rest",
    [
        ["eviction=a2sf(budget=12)"],
        ["eviction=h2o(budget=12, protect='3, 9-10', drop='5')"],
        ["eviction=streaming_llm(budget=12, protect='6')"],
        ["eviction=snapkv(budget=12, observation_window=4, drop='2-3')"],
        ["decode=sparq(tokens=0.5, dense_layers=0)"],
    ],
)
def test_a_gate_before_another_stage_is_the_same_simulated_and_physical(tmp_path, rest):
    check_simulation(
        tiny.model(), gated(gate_file(tmp_path, tiny.model(), bias=2.0), *rest), decodes="decode" in rest[0]
    )


@pytest.mark.parametrize(
    "rest", [["eviction=a2sf(budget=12, drop='5-7')"], ["eviction=streaming_llm(budget=12, protect='6')"], []]
)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gate_eviction_and_selection_together_are_the_same_simulated_and_physical(tmp_path, family, rest):
    """From one token on, so that every query but the first selects; window, soft cap and lost slots included."""
    model = tiny.model(family)
    gate = gate_file(tmp_path, model, bias=2.0)
    pipeline = gated(gate, *rest, "decode=sparq(tokens=0.5, dense_layers=0, channels=8)")
    asked = {"max_new_tokens": 40, "stop_at_eos": False, "against_dense": False, "temperature": 1.0}
    tried = (generate(model, tiny.ids(1), pipeline, seed=seed, **asked) for seed in range(9))
    out = next(
        made for made in tried if tiny.PAD not in made.token_ids
    )  # its embedding is nought: all keys tie with it
    real = out.trace
    again = run(model, real.token_ids.tolist(), pipeline, against_dense=False)
    same(again.evicted_at, real.evicted_at)
    np.testing.assert_allclose(again.nll[:-1], real.nll[:-1], rtol=0, atol=1e-5)
    same(again.selected[..., 1:], real.selected[..., 1:])
    assert (real.selected[..., 1:] > 0).any() and (real.evicted_at < 40).any()


def check_simulation(model, pipeline, decodes=False):
    asked = {"max_new_tokens": 14, "stop_at_eos": False, "against_dense": False}
    with tiny.hidden_states(model.hf) as unscored:  # decode steps by the model's own attention
        quick = generate(model, tiny.ids(30), pipeline, snapshots=0, **asked)
    with tiny.hidden_states(model.hf) as seen:
        out = generate(model, tiny.ids(30), pipeline, **asked)
        physical = torch.cat(seen)
        torch.testing.assert_close(torch.cat(unscored), physical, rtol=0, atol=1e-9)
        same(quick.trace.evicted_at, out.trace.evicted_at)
        real = out.trace
        if decodes:  # a run lets every query select, generation those after the prompt
            return
        masked = run(model, real.token_ids.tolist(), pipeline, n_prefill=30, against_dense=False)
    torch.testing.assert_close(seen[-1], physical, rtol=0, atol=1e-9)
    assert (real.evicted_at < real.n_tokens).any()
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.kv_bytes == real.kv_bytes < real.kv_bytes_dense * 1.5


def test_a_later_token_changes_no_earlier_drop(tmp_path):
    model, ids = tiny.model(), tiny.ids(44)
    pipeline = gated(gate_file(tmp_path, model))
    one = run(model, ids, pipeline, against_dense=False)
    two = run(model, [*ids[:20], *tiny.ids(24, seed=9)], pipeline, against_dense=False)
    same(one.gated_at[:, :20].clip(max=20), two.gated_at[:, :20].clip(max=20))
    same(one.nll[:19], two.nll[:19])
    assert (one.gated_at[:, :20] < 20).any()


def test_a_gate_runs_on_the_model_it_was_trained_on_with_its_weights_cut(tmp_path):
    model = tiny.model()
    spelled = f"weights=row_norm(ratio=0.25) {gated(gate_file(tmp_path, model))}"
    trace = run(model, tiny.ids(44), Pipeline.parse(spelled))
    assert trace.density() < 1 and trace.provenance.pipeline == spelled
    look = look_at_gate(model, trace, Pipeline.parse(spelled), 1, (10, 40))
    below = np.tri(30, 30, -1, dtype=bool)
    dropped = (look.x <= 0) & below
    first = np.where(dropped.any(0), dropped.argmax(0) + 10, 44)
    inside = trace.gated_at[1, 10:40] < 40
    same(first[inside], trace.gated_at[1, 10:40][inside])
    assert inside.any()


def test_a_trace_says_which_token_dropped_which(tmp_path):
    model, ids = tiny.model(), tiny.ids(44)
    path = gate_file(tmp_path, model)
    trace = run(model, ids, gated(path))
    gate, seen = Gate.load(path), {}

    class Watch:
        def attend(self, call):
            from sparsity_core.models.seam import attention_input

            layer = call.layer
            hidden = attention_input(layer)[0]
            x = (hidden @ gate.query[layer].double().T) @ (hidden @ gate.key[layer].double().T).T / gate.rank**0.5
            seen[layer] = x + gate.bias[layer].double()
            return flash_column_score(call.q, call.k, call.v, scale=call.scale).out

    with recording(Watch()):
        model.hidden(torch.tensor([ids]), use_cache=False)
    first = oracles.gate_step_by_step(seen[0]).clamp_max(44).numpy()  # the first layer reads the same, dropped or not
    same(trace.gated_at[0], first)
    same(trace.dropped_by(0), np.broadcast_to(np.where(first < 44, first, -1), (2, 44)))
    stored = tmp_path / "trace.npz"
    trace.save(stored)
    same(Trace.load(stored).gated_at, trace.gated_at)
    assert (run(model, ids, Pipeline()).dropped_by(0) == -1).all()


def test_threshold_zero_is_as_trained_and_more_drops_more(tmp_path):
    path = gate_file(tmp_path, tiny.model())
    kept = [
        run(tiny.model(), tiny.ids(44), gated(path, threshold=t), against_dense=False).density() for t in (-99, 0, 1)
    ]
    assert kept[0] == 1.0 > kept[1] > kept[2]


def test_propagated_drops_stay_in_the_layers_above(tmp_path):
    trace = run(tiny.model(), tiny.ids(44), gated(gate_file(tmp_path, tiny.model(), propagate=True)))
    assert (np.diff(trace.gated_at, axis=0) <= 0).all()
    alone = run(tiny.model(), tiny.ids(44), gated(gate_file(tmp_path, tiny.model())))
    assert (np.diff(alone.gated_at, axis=0) > 0).any()


def test_a_soft_gate_at_infinite_sharpness_is_the_gate_that_runs(tmp_path):
    for propagate in (False, True):
        path = gate_file(tmp_path, tiny.model(), propagate=propagate)
        soft = SoftGate(Gate.load(path), math.inf)
        with recording(soft):
            hidden = tiny.model().hidden(torch.tensor([tiny.ids(44)]), use_cache=False)[0]
        with tiny.hidden_states(tiny.model().hf) as seen:
            trace = run(tiny.model(), tiny.ids(44), gated(path), against_dense=False)
        torch.testing.assert_close(hidden, seen[0], rtol=0, atol=1e-6)  # its gate is float32
        below = np.tri(44, 44, -1, dtype=bool)
        kept = [trace.keep(layer)[0][below].mean() for layer in range(3)]
        same(np.array([float(k) for k in soft.kept]), np.array(kept), atol=1e-6)


SETTINGS = Training(steps=6, length=24, rank=4, learning_rate=0.02)


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


def test_a_family_that_hides_what_its_attention_reads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(seam, "_keep_input", lambda module, args, kwargs: None)
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "tiny-llama")
    for attempt in (
        lambda: run(model, tiny.ids(20), gated(gate_file(tmp_path, model))),
        lambda: train_gate(model, SETTINGS, text=TEXT),
    ):
        with pytest.raises(ValueError, match="does not show what its attention reads"):
            attempt()


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


def test_a_gate_of_another_model_and_damaged_files_are_refused(tmp_path):
    path = gate_file(tmp_path, tiny.model())
    loaded = Gate.load(path)
    assert loaded.digest() == Gate.load(path).digest()
    with pytest.raises(ValueError, match=r"trained on tiny-llama .* not on tiny-gpt2"):
        run(tiny.model("gpt2"), tiny.ids(12), gated(path))
    with pytest.raises(ValueError, match=r"there is no gate at .*missing"):
        Gate.load(tmp_path / "missing")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is not the file that .* was written with"):
        Gate.load(path)
    path.with_suffix(".json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="no gate of format"):
        Gate.load(path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Gate.load(path)
    with pytest.raises(ValueError, match=r"was trained on smollm2-135m|no gates ship"):
        run(tiny.model(), tiny.ids(12), Pipeline.parse("gate=dcp"))


def test_rules_name_positions_spans_and_what_expressions_touch():
    texts = ["In", " 19", "69", ", a", " cat"]
    assert ruled("0, 3-4", texts, range(6), 6).tolist() == [True, False, False, True, True, False]
    assert ruled("/[0-9]+/", texts, range(6), 6).tolist() == [False, True, True, False, False, False]
    assert ruled(r"/a\/b/, 5", texts, range(6), 6).tolist() == [False] * 5 + [True]
    assert ruled("7", texts, range(6), 6).tolist() == [False] * 6
    assert parse_rules("") == []
    for text, message in [
        ("a", "cannot read the rule 'a'"),
        ("5-3", "ends before it begins"),
        ("/(/", "is no regular expression"),
        ("1 2", "cannot read the rule"),
    ]:
        with pytest.raises(ValueError, match=message):
            Pipeline.parse(f"eviction=a2sf(budget=12, protect={text!r})")


@pytest.mark.parametrize("letters", [60, 20_000])
def test_an_expression_without_end_in_other_engines_ends(letters):
    assert not ruled("/(a|aa)+$/", ["a" * letters, "!"], [0, 1], 2).any()
    assert ruled("/(a|aa)+!/", ["a" * letters, "!"], [0, 1], 2).all()


@pytest.mark.parametrize("expression", ["((a{1000}){1000}){1000}", r"(a)\1", "(?<=a)b", "\udc80"])
def test_an_expression_that_cannot_be_bounded_is_a_sentence(expression):
    with pytest.raises(ValueError, match="is no regular expression that RE2 reads"):
        ruled(f"/{expression}/", ["a"], [0], 1)


def test_places_are_characters_whatever_their_bytes():
    assert ruled("/12/", ["é🙂", "12", "é"], [0, 1, 2], 3).tolist() == [False, True, False]


EVICTIONS = ["a2sf", "h2o", "tova", "snapkv", "streaming_llm", "local_window", "random"]


@pytest.mark.parametrize("name", EVICTIONS)
def test_every_eviction_method_keeps_what_is_protected_and_drops_what_is_forced(name):
    small = ", observation_window=4" if name == "snapkv" else ""
    pipeline = Pipeline.parse(f"eviction={name}(budget=12{small}, protect='5, 17', drop='8-9')")
    check_simulation(tiny.model(), pipeline)
    trace = run(tiny.model(), tiny.ids(44), pipeline, n_prefill=30)
    assert (trace.evicted_at[..., [5, 17]] == 44).all()
    same(trace.evicted_at[..., 8], np.full((3, 2), 9))
    same(trace.evicted_at[..., 9], np.full((3, 2), 10))
    if name != "snapkv":  # which cuts once
        assert (trace.keep(0)[:, 31:].sum(-1) <= 13).all()


def test_rules_work_with_a_budget_of_everything_and_protect_wins(tmp_path):
    pipeline = Pipeline.parse("eviction=a2sf(budget=99, protect='4', drop='3-4')")
    trace = run(tiny.model(), tiny.ids(20), pipeline)
    assert trace.evicted_at[0, 0].tolist() == [20, 20, 20, 4, *[20] * 16]
    assert np.flatnonzero(trace.protected).tolist() == [4]
    table = strip_table(trace, 0, 0)
    assert table["state"].tolist()[3:5] == ["dropped", "sink"] and table["ruled"].tolist()[4]
    kept = run(tiny.model(), tiny.ids(44), gated(gate_file(tmp_path, tiny.model()), protect="0-43"))
    assert kept.density() == 1.0


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("snapkv(budget=12, observation_window=12, protect='3-5')", [3, 4, 5, *range(21, 30)]),
        ("a2sf(budget=12, variant=prefill, n_sink=2, recent=10, protect='0, 5')", [0, 1, 5, *range(21, 30)]),
    ],
)
def test_what_is_protected_stays_at_a_cut_and_the_oldest_of_the_recent_make_room(method, kept):
    """There is no choice by score, so no threshold either."""
    trace = run(tiny.model(), tiny.ids(31), Pipeline.parse(f"eviction={method}"), n_prefill=30)
    same(trace.keep(0)[:, 30], np.isin(np.arange(31), [*kept, 30])[None].repeat(2, 0))
    assert np.isnan(trace.threshold[..., 29]).all()


def test_a_protected_sink_counts_once():
    pipeline = Pipeline.parse("eviction=streaming_llm(budget=5, n_sink=4, protect='0-3')")
    assert (run(tiny.model(), tiny.ids(20), pipeline).evicted_at[..., :4] == 20).all()


def test_protecting_more_than_the_budget_is_refused():
    with pytest.raises(ValueError, match="protect names 20 tokens, which with 0 sinks and the newest token do not fit"):
        run(tiny.model(), tiny.ids(44), Pipeline.parse("eviction=a2sf(budget=12, protect='0-19')"))
