"""Which rule each layer of a model follows, and what its rule means for the layer's heads."""

from __future__ import annotations

from collections.abc import Sequence

from sparsity_core.kinds import DENSE, EvictionMethod, LayerShape, PrefillRule, ScanRule, least_of, with_memory
from sparsity_core.models import Model


def layer_rules(
    model: Model, method: EvictionMethod | None, seed: int = 0, prompt: Sequence[int] = ()
) -> list[ScanRule | PrefillRule]:
    """The rule of each layer. Raises ValueError where a layer's budget cannot hold what the method protects."""
    arch, known = model.arch, tuple(prompt)
    shapes = [LayerShape(i, arch.n_layers, arch.n_kv_heads, seed, model, known) for i in range(arch.n_layers)]
    rules = [DENSE if method is None else method.rule(shape) for shape in shapes]
    if not model.caches:
        return rules
    fitted = [_fitted(rule, layer.window) for rule, layer in zip(rules, model.caches, strict=True)]
    return [fitted[model.cached_in(i)] for i in range(arch.n_layers)]


def _fitted(rule: ScanRule | PrefillRule, window: int | None) -> ScanRule | PrefillRule:
    """The rule of a layer with a window: nothing needs to go where the budget holds all that a query sees.

    Such a layer has no memory: the model itself soon loses sight of what it would hold.
    """
    if window is None:
        return rule
    least = least_of(rule.budget, rule.then.budget if isinstance(rule, PrefillRule) else None)
    return DENSE if least is not None and least >= window else with_memory(rule, False)


def cuts_once(rules: Sequence[ScanRule | PrefillRule]) -> bool:
    """Whether any layer drops at one cut, when the prefill ends."""
    return any(isinstance(rule, PrefillRule) and rule.budget is not None for rule in rules)


def parts_heads(rule: ScanRule | PrefillRule) -> bool:
    """Whether heads may come to hold different keys."""
    later = rule.then.budget if isinstance(rule, PrefillRule) else None
    return rule.budget is not None or later is not None
