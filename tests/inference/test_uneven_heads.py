"""KV heads of one layer with budgets of their own: the laws of eviction hold for each head by its own budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, generate, run
from sparsity_core.inference.replay import replaying
from sparsity_core.kinds import EvictionMethod, LayerShape, PrefillRule, ScanRule, knob
from sparsity_core.models import recording
from tests import tiny
from tests.inference.every import NEW, PROMPT, TOTAL, pipeline, same, same_traces, text

ALL = None
BUDGETS = ((7, 17), (ALL, 9), (19, 6))  # of each layer and KV head
KEY = 2 * 16 * 8  # bytes of a key and its value in float64


@dataclass(frozen=True)
class OwnBudgets(EvictionMethod):
    """Another method's rule, with a budget of its own for each head of each layer."""

    name: ClassVar[str] = "own_budgets"
    of: str = knob("h2o(budget=6)", help="the method whose rule it is")

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule | PrefillRule:
        rule, own = pipeline(self.of).eviction.rule(layer), BUDGETS[layer.index][: layer.n_kv_heads]
        if isinstance(rule, PrefillRule) and rule.then.budget is not None:
            rule = replace(rule, then=replace(rule.then, budget=own))
        return replace(rule, budget=own)


ENGINES = [
    "random(budget=6)",
    "h2o(budget=6)",
    "a2sf(budget=6)",
    "a2sf(budget=6, n_sink=2, recent=1, value_norm=True, reduction=max)",
    "a2sf(budget=6, forgetting_factor={other: 0.25, space: 0.75})",
    "a2sf(budget=6, forgetting_factor=0.9, variant=prefill)",
    "tova(budget=6)",
    "snapkv(budget=6, observation_window=3)",
    "streaming_llm(budget=6)",  # heads that stream beside heads that keep all
    "streaming_llm(budget=6, n_sink=2)",
]


def method(of: str, **knobs: str) -> Pipeline:
    return Pipeline(eviction=OwnBudgets(of=of, budget=6, **knobs))


def kept_after(trace, layer: int, query: int) -> np.ndarray:
    """[Hkv]: how many keys each head holds after a query."""
    return (trace.evicted_at[layer] > query + 1)[:, : query + 1].sum(-1)


def simulated_and_real(model, chosen: Pipeline, new: int = NEW):
    """(run, generate) over the same tokens, with the hidden states of each pruned pass."""
    with tiny.hidden_states(model.hf) as seen:
        real = generate(model, text()[:PROMPT], chosen, max_new_tokens=new, stop_at_eos=False).trace
        physical = torch.cat(seen[:-1])  # the last forward is the dense one, to compare
        masked = run(model, real.token_ids.tolist(), chosen, n_prefill=PROMPT)
        return masked, real, seen[-2], physical


@pytest.mark.parametrize("of", [*ENGINES, "streaming_llm(budget=6, re_rotate=True)"])
def test_masked_simulation_equals_physical_eviction(of):
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method(of))
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    rule = method(of).eviction.rule(LayerShape(0, 3, 2))
    forever = isinstance(rule, PrefillRule) and rule.then.budget is None
    wanted = [
        [TOTAL if own is ALL else min(TOTAL, own + TOTAL - PROMPT) if forever else own for own in layer]
        for layer in BUDGETS
    ]
    assert masked.kv_bytes == sum(map(sum, wanted)) * KEY  # of keys alone
    assert real.kv_bytes == sum(2 * max(layer) for layer in wanted) * KEY  # as wide as the head that holds most


@pytest.mark.parametrize("of", ENGINES)
def test_after_every_query_each_head_keeps_its_own_budget(of):
    trace = run(tiny.model(), text(), method(of), n_prefill=PROMPT, against_dense=False)
    n = trace.n_tokens
    assert trace.budgets.tolist() == [[n if own is ALL else own for own in layer] for layer in BUDGETS]
    for layer, own in enumerate(BUDGETS):
        rule = method(of).eviction.rule(LayerShape(layer, 3, 2))
        for head, budget in enumerate(own):
            for query in range(n - 1):
                most = n if budget is ALL else budget
                if isinstance(rule, PrefillRule):
                    before, forever = query < PROMPT - 1, rule.then.budget is None
                    most = n if before else most + (query - PROMPT + 1) * forever
                assert kept_after(trace, layer, query)[head] == min(query + 1, most)


@pytest.mark.parametrize("of", ENGINES)
def test_attention_is_plain_attention_under_the_recorded_masks(of):
    with tiny.hidden_states(tiny.model().hf) as seen:
        trace = run(tiny.model(), text(), method(of), n_prefill=PROMPT)
    plain, tokens = tiny.transformer("llama"), torch.tensor([text()])
    with tiny.plain_attention(plain, [trace.keep(layer) for layer in range(3)]):
        expected = plain.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("of", ENGINES)
def test_scores_are_recorded_of_the_kept_keys_alone(of):
    trace = run(tiny.model(), text(), method(of), n_prefill=PROMPT, snapshots=1000, against_dense=False)
    n = trace.n_tokens
    for layer in range(3):
        rule = method(of).eviction.rule(LayerShape(layer, 3, 2))
        if isinstance(rule, PrefillRule) or rule.scored or rule.noise is not None:
            for query in range(n - 1):
                kept = (np.arange(n) <= query) & (trace.evicted_at[layer] > query + 1)
                assert (~np.isnan(trace.snapshots[layer, :, query]) == kept).all()


@pytest.mark.parametrize("of", ["h2o(budget=6)", "snapkv(budget=6, observation_window=3)", "streaming_llm(budget=6)"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])  # soft-capped, windows, four KV heads' worth of one
def test_masked_simulation_equals_physical_eviction_in_other_families(monkeypatch, family, of):
    own = ((7, 5), (ALL, 6), (19, 6))
    monkeypatch.setitem(globals(), "BUDGETS", [layer * 2 if family == "gpt2" else layer for layer in own])
    of = of.replace("budget=6", "budget=5")
    masked, real, hidden, physical = simulated_and_real(tiny.model(family), method(of), 8)
    assert (real.evicted_at < real.n_tokens).any()
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("rules", [{"protect": "3-5"}, {"drop": "8-10, 20"}], ids=["protect", "drop"])
@pytest.mark.parametrize("of", ["h2o(budget=6)", "snapkv(budget=6, observation_window=1)"])
def test_so_it_is_under_the_users_rules(rules, of):
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method(of.replace("h2o(", "a2sf("), **rules))
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    if "protect" in rules:
        assert (masked.evicted_at[..., 3:6] == TOTAL).all()
    else:
        assert (masked.evicted_at[..., [8, 9, 10, 20]] == [9, 10, 11, 21]).all()


@pytest.mark.parametrize(
    "decode",
    [
        "sparq(tokens=0.5, dense_layers=0, channels=8)",
        "sparq(tokens=0.5, dense_layers=0, channels=8, mean_value=True)",
        "double_sparsity(tokens=0.5, channels=8, dense_layers=0)",
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_a_decode_step_reads_is_no_empty_slot(decode, family):
    chosen = Pipeline(eviction=method("a2sf(budget=6)").eviction, decode=Pipeline.parse(f"decode={decode}").decode)
    model = tiny.model(family)
    run(model, text()[:PROMPT], chosen, against_dense=False)  # the channels are calibrated by forwards of their own
    with tiny.hidden_states(model.hf) as seen:
        asked = {"max_new_tokens": 8, "stop_at_eos": False, "against_dense": False}
        trace = generate(model, text()[:PROMPT], chosen, **asked).trace
        recorder = replaying(model, trace, chosen)
        with recording(recorder), torch.inference_mode():
            model.hidden(torch.from_numpy(trace.token_ids.astype(np.int64))[None], use_cache=False)
    torch.testing.assert_close(torch.cat(seen[:-1]), seen[-1], rtol=0, atol=1e-5)  # approximate scores are float32
    same(recorder.evicted_at(trace.n_tokens), trace.evicted_at)
    simulated = recorder.stages.reading.record(trace.n_tokens)
    same(simulated.selected, trace.reading.selected, atol=1e-5)
    for layer in range(3):
        removed, keep = trace.removed_by(layer), trace.keep(layer)
        for query in range(PROMPT, trace.n_tokens):
            seen_of = keep[:, query].sum(-1)
            read = (removed[:, query, : query + 1] == 0).sum(-1)
            assert (read < seen_of).all() and (read > 0).all()
            assert (removed[:, query, : query + 1][~keep[:, query, : query + 1]] == 1).all()


def test_budgets_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"own_budgets: layer 0 has budgets for 2 heads and the model has 4 KV heads"):
        run(tiny.model("gpt2"), text(), method("h2o(budget=6)"))
    with pytest.raises(ValueError, match=r"layer 0 keeps 7 keys, fewer than the 0 sinks \+ 9 recent keys"):
        run(tiny.model(), text(), method("h2o(budget=9, recent_share=1.0)"))
