"""Every eviction method at a small budget with its variants, on one short text, and how two traces are compared."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.kinds.eviction import LayerShape, PrefillRule, ScanRule
from tests import tiny

BUDGET, PROMPT, NEW = 12, 30, 14
TOTAL = PROMPT + NEW - 1  # the last new token is never an input


def small(name: str) -> str:
    """A registered method at a small budget, with what it protects made small too."""
    cls = methods.get(name)
    knobs: dict[str, object] = {"budget": BUDGET} | ({"layer_budget": "uniform"} if name == "kvzip" else {})
    for knob in cls.knobs():
        whole = isinstance(knob.default, int) and not isinstance(knob.default, bool)
        if whole and knob.name != "budget" and knob.default > BUDGET:
            knobs[knob.name] = int(knob.metadata["low"])
        if knob.name == "base":
            knobs["base"] = small(str(knob.default)).replace(f"budget={BUDGET}, ", "")
    return str(cls(**knobs))


# What a user may ask for beside the defaults; every law below holds for each.
VARIANTS = [
    "a2sf(budget=12, forgetting_factor=0.5, variant=prefill)",
    "a2sf(budget=12, forgetting_factor=0.75, variant=prefill, n_sink=2, recent=3, value_norm=True)",
    "a2sf(budget=12, forgetting_factor=0.75, variant=prefill_only, recent=3)",
    "a2sf(budget=12, layer_budget=pyramid)",
    "a2sf(budget=12, layer_budget=pyramid, variant=prefill)",
    "a2sf(budget=12, dense_layers=1)",
    "a2sf(budget=12, dense_layers=2, variant=prefill)",
    "a2sf(budget=12, forgetting_factor=[0.25, 0.5, 1.0])",
    "a2sf(budget=12, forgetting_factor=[[0.25, 1.0], [0.5, 0.0], 0.75])",
    "a2sf(budget=12, forgetting_factor={capitalised: 0.0, number: 1.0, other: 0.25, space: 0.75})",
    "a2sf(budget=12, forgetting_factor={other: 0.25, space: 0.75}, variant=prefill)",
    "a2sf(budget=12, n_sink=2, recent=3)",
    "a2sf(budget=1)",
    "h2o(budget=12, value_norm=True)",
    "h2o(budget=12, reduction=max, recent_share=0.0)",
    "h2o(budget=12, recent_share=1.0)",
    "tova(budget=12, reduction=mean)",
    "tova(budget=12, shared_heads=True)",
    "tova(budget=12, shared_heads=True, value_norm=True, reduction=max)",
    "pyramid_kv(budget=12, observation_window=3, beta=5.0)",
    "cake(budget=12, observation_window=3, layer_budget=uniform)",
    "snapkv(budget=12, observation_window=3, pool=1, reduction=max)",
    "snapkv(budget=12, observation_window=12, pool=5)",
    "streaming_llm(budget=12, re_rotate=True)",
    "streaming_llm(budget=12, n_sink=0)",
    "streaming_llm(budget=12, n_sink=12)",
    "random(budget=12, n_sink=2, recent=2)",
    "a2sf(budget=12, protect='3-5, 20')",
    "a2sf(budget=12, memory=mean)",
    "a2sf(budget=12, forgetting_factor=0.5, variant=prefill, n_sink=2, value_norm=True, memory=mean)",
    "h2o(budget=12, recent_share=1.0, memory=mean)",
    "tova(budget=12, shared_heads=True, memory=mean, protect='3-5, 20')",
    "snapkv(budget=12, observation_window=4, memory=mean)",
    "ada_kv(budget=12, base='knorm(n_sink=2)', safeguard=0.0)",
    "ada_kv(budget=12, base='a2sf(forgetting_factor=0.75, variant=prefill_only, recent=3)', dense_layers=1)",
    "knorm(budget=12, every=1, n_sink=2)",
    "keydiff(budget=12, every=1, recent=2)",
    "keydiff(budget=12, every=4)",
    "r_kv(budget=12, every=1, recent=3)",
    "r_kv(budget=12, every=3, recent=3, pool=3, layer_budget=pyramid)",
    "expected_attention(budget=12, every=3)",
    "multi_metric(budget=12, every=3, recent=3, pool=3, top=4, redundancy=0.3)",
]
# But those whose heads or layers have budgets of their own, by the model or the prompt: tests/methods has tests of each.
OWN_BUDGETS = ("duo_attention", "cake", "kvzip")
EVERY = [*(small(name) for name in methods.names("eviction") if name not in OWN_BUDGETS), *VARIANTS]
SOME = ["a2sf(budget=12)", "snapkv(budget=12, observation_window=4)", "streaming_llm(budget=12)"]


def pipeline(method: str) -> Pipeline:
    return Pipeline.parse(f"eviction={method}")


def resized(method: str, budget: int) -> Pipeline:
    """The method at another budget, protecting no more than that."""
    return Pipeline(eviction=dataclasses.replace(pipeline(method).eviction, budget=budget))


def rules(method: str) -> list:
    return [pipeline(method).eviction.rule(LayerShape(i, 3, 2)) for i in range(3)]


def memory_bytes(method: str) -> int:
    """Of a memory in each of 3 layers and 2 heads: the sums of keys and values of 16 float64, and how many they are."""
    return 3 * 2 * (2 * 16 + 1) * 8 if "memory=mean" in method else 0


def held_after(rule: ScanRule, n: int) -> np.ndarray:
    """[n]: how many keys a head of this rule holds after each query; several go at once where it cuts by blocks."""
    held = [0]
    for _ in range(n):
        more = held[-1] + 1
        held.append(more if rule.budget is None or more <= rule.budget else rule.budget + 1 - rule.every)
    return np.array(held[1:])


def one_cut(method: str) -> bool:
    return any(isinstance(rule, PrefillRule) and rule.budget is not None for rule in rules(method))


@functools.cache
def text() -> list[int]:
    return tiny.ids(PROMPT + NEW)


def traced(method: str, ids: list[int], **options):
    return run(tiny.model(), ids, pipeline(method), n_prefill=PROMPT, **options)


def same(one: np.ndarray, other: np.ndarray, **tolerance: float) -> None:
    np.testing.assert_allclose(one, other, equal_nan=True, **{"rtol": 0, "atol": 0} | tolerance)


def same_traces(one, other, **tolerance: float) -> None:
    """Every array of two traces."""
    for name, value in one.flat().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(
                value,
                other.flat()[name],
                equal_nan=True,
                err_msg=name,
                **{"rtol": 0, "atol": 0} | tolerance,
            )


def simulated_and_real(model, method: str, prompt: list[int], new: int):
    """(run, generate) over the same tokens, with the hidden states of each pruned pass."""
    with tiny.hidden_states(model.hf) as seen:
        real = generate(model, prompt, pipeline(method), max_new_tokens=new, stop_at_eos=False).trace
        physical = torch.cat(seen[:-1])  # the last forward is the dense one, to compare
        masked = run(model, real.token_ids.tolist(), pipeline(method), n_prefill=len(prompt))
        return masked, real, seen[-2], physical


# A layer whose window is within the budget drops nothing.
BELOW_THE_WINDOW = [method.replace("budget=12", f"budget={tiny.WINDOW - 2}") for method in SOME]


def check_against_plain_attention(
    family: str, method: str, ids: list[int] | None = None, n_prefill: int = PROMPT
) -> None:
    ids, model = ids or text(), tiny.model(family)
    with tiny.hidden_states(model.hf) as seen:
        trace = run(model, ids, pipeline(method), n_prefill=n_prefill)
    assert (trace.evicted_at < len(ids)).any()
    plain, tokens = tiny.transformer(family), torch.tensor([ids])
    keeps = [trace.keep(layer) for layer in range(3)]
    with tiny.plain_attention(plain, keeps, remembers="memory=mean" in method):
        expected = plain.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        logits = plain(input_ids=tokens, use_cache=False).logits[0]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-9)
    same(trace.nll[:-1], tiny.nll(logits, ids), rtol=2e-7)
