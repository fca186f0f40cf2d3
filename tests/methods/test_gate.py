"""Dynamic context pruning in a run: physical dropping, other stages beside it, and its files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sparselens_kernels import flash_column_score

from sparsity_core import Pipeline, Trace, generate, run
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.gate.dcp.training import SoftGate, train_gate
from sparsity_core.models import seam
from sparsity_core.models.loading import wrap
from sparsity_core.models.seam import recording
from sparsity_core.studies.gate import look_at_gate
from tests import oracles, tiny
from tests.inference.every import same
from tests.methods.gates import SETTINGS, TEXT, check_simulation, gate_file, gated


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
        ["eviction=h2o(budget=12, protect='3, 9-10', drop='5', memory=mean)"],
        ["eviction=streaming_llm(budget=12, protect='6')"],
        ["eviction=snapkv(budget=12, observation_window=4, drop='2-3')"],
        ["eviction=snapkv(budget=12, observation_window=4, drop='2-3', memory=mean)"],
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


def test_a_family_that_hides_what_its_attention_reads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(seam, "_keep_input", lambda module, args, kwargs: None)
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "tiny-llama")
    for attempt in (
        lambda: run(model, tiny.ids(20), gated(gate_file(tmp_path, model))),
        lambda: train_gate(model, SETTINGS, text=TEXT),
    ):
        with pytest.raises(ValueError, match="does not show what its attention reads"):
            attempt()


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
