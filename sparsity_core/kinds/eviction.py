"""The eviction stage: which cached keys stay, for good, as one of two rules for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsity_core.kinds.knobs import MOST_LAYERS, MOST_TOKENS, REDUCTIONS, knob
from sparsity_core.kinds.method import Ruled
from sparsity_core.kinds.spelling import told

FORGETTING_CLASSES = ("number", "punctuation", "function", "capitalised", "word", "space")
_FORMER = {"name": "capitalised"}


def class_named(name: Any) -> Any:
    """A token class by its name in today's terms, or by the one that older links, pipelines and traces hold."""
    return _FORMER.get(name, name)


@dataclass(frozen=True)
class LayerShape:
    """What an eviction method may ask about the layer that it plans for."""

    index: int
    n_layers: int
    n_kv_heads: int
    seed: int = 0
    model: Any = None  # for a method that measures on it
    prompt: tuple[
        int, ...
    ] = ()  # the tokens that a method of one cut reads before it; none where they are not known yet


Budget = int | tuple[int | None, ...] | None  # keys that stay: in every KV head, or in each its own; None: all of them


def budgets_of(budget: Budget, n_kv_heads: int) -> tuple[int | None, ...]:
    """The budget of each KV head."""
    return budget if isinstance(budget, tuple) else (budget,) * n_kv_heads


def least_of(*budgets: Budget) -> int | None:
    """The smallest budget of any head; None where all heads keep everything."""
    limited = [own for budget in budgets for own in budgets_of(budget, 1) if own is not None]
    return min(limited, default=None)


@dataclass(frozen=True)
class ScanRule:
    """One query in, at most one key out: the numbers of `sparselens_kernels.evict_scan` for one layer.

    With `rank`, of `ranked.HeldKeys`, no attention is summed: once a query leaves more than the budget, the cache is ranked and
    cut so far that `every` more keys bring it there again.
    """

    budget: Budget
    decay: ForgettingFactor = 1.0  # a number, one per KV head, or one per token class
    n_sink: int = 0
    recent: int = 0
    scored: bool = True
    value_norm: bool = False
    reduction: str = "sum"
    noise: int | None = None  # the seed of the random score that a key arrives with
    re_rotate: bool = False
    shared: bool = False  # all heads of the layer choose together
    rank: Callable[[Any], Any] | None = None  # HeldKeys → [B, Hkv, n]
    every: int = 1
    ranking_queries: int = 0  # how many of the last queries `rank` looks at
    memory: bool = False  # queries read the mean key and value of what was evicted, as so many keys

    def left(self, budget: int) -> int:
        """How many keys a head of this budget holds right after a cut."""
        return budget + 1 - self.every


@dataclass(frozen=True)
class PrefillRule:
    """The prompt is read densely; when it ends, the cache is cut once. Later queries follow the rule `then`."""

    budget: Budget  # None: nothing is cut
    decay: ForgettingFactor = 1.0
    queries: int | None = None  # only the last so many queries score; None: all
    pool: int = 1  # average pooling over this many neighbouring keys
    n_sink: int = 0
    recent: int = 0
    value_norm: bool = False
    reduction: str = "sum"
    # HeldKeys, all queries of the prompt among them → [B, Hkv, n]; None: the attention received, as above
    rank: Callable[[Any], Any] | None = None
    # (the ranked votes [B, Hkv, n], the budget of a head) → int64 [B, Hkv]: what each keeps, the layer's sum alike
    allot: Callable[[Any, int], Any] | None = None
    then: ScanRule = ScanRule(budget=None)
    memory: bool = False  # as in ScanRule: of what the cut took


ForgettingFactor = float | tuple[Any, ...] | Mapping[str, float]
DENSE = PrefillRule(budget=None)


def with_memory(rule: ScanRule | PrefillRule, memory: bool) -> ScanRule | PrefillRule:
    """The rule, whose queries read a memory of what was evicted or do not."""
    if isinstance(rule, PrefillRule):
        return replace(rule, memory=memory, then=replace(rule.then, memory=memory))
    return replace(rule, memory=memory)


@dataclass(frozen=True)
class EvictionMethod(Ruled):
    """Decides which cached keys stay, for good, per layer and KV head."""

    stage = "eviction"

    budget: int = knob(
        256, low=8, high=4096, at_least=1, at_most=MOST_TOKENS, always=True, help="keys kept per KV head"
    )
    layer_budget: str = knob(
        "uniform",
        choices=("uniform", "pyramid"),
        help="the same budget in every layer, or a pyramid: 1.5 × at the bottom to 0.5 × at the top, equal in sum",
    )
    dense_layers: int = knob(
        0, low=0, high=8, at_least=0, at_most=MOST_LAYERS, help="first layers that keep everything"
    )

    @property
    def protects_prompt(self) -> bool:
        """Whether no token of the prompt may go: those that are read at once, of a run half of its text."""
        return False

    @property
    def cuts_once(self) -> bool:
        """Whether the prompt is read densely and cut when it ends, not as it is read."""
        return isinstance(self.rule_within(self.budget, LayerShape(0, 1, 1)), PrefillRule)

    @property
    def remembers(self) -> bool:
        """Whether queries read a memory of what was evicted beside the keys that are kept."""
        return False

    def budget_of(self, layer: LayerShape) -> int:
        if self.layer_budget == "uniform" or layer.n_layers == 1 or self.budget == 1:
            return self.budget
        top = layer.n_layers - 1
        # budget · (1.5 − index / top); halves go up in the lower layers and down in the upper, so that the sum is exact
        return (self.budget * (3 * top - 2 * layer.index) + top - (2 * layer.index > top)) // (2 * top)

    def rule(self, layer: LayerShape) -> ScanRule | PrefillRule:
        """The numbers of this layer. Raises ValueError where the layer's budget cannot hold what is protected."""
        if layer.index < self.dense_layers:
            return DENSE
        rule = self.rule_within(self.budget_of(layer), layer)
        n_budgets, least = len(budgets_of(rule.budget, layer.n_kv_heads)), least_of(rule.budget)
        if n_budgets != layer.n_kv_heads:
            raise ValueError(
                f"{self.name}: layer {layer.index} has budgets for {n_budgets} heads and the model has "
                f"{layer.n_kv_heads} KV heads"
            )
        if least is not None and isinstance(rule, ScanRule):
            least = rule.left(least)
        if least is not None and rule.n_sink + rule.recent > least:
            raise ValueError(
                f"{self.name}: layer {layer.index} keeps {least} keys, fewer than the {rule.n_sink} sinks + "
                f"{rule.recent} recent keys it protects. Raise the budget or protect fewer"
            )
        return with_memory(rule, True) if self.remembers else rule

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule | PrefillRule:
        """The numbers of a layer whose heads keep `budget` keys each, or share `len(heads) · budget` among them."""
        raise TypeError(f"{type(self).__name__} must define rule_within")

    def _check_protected(self, *knobs: str) -> None:
        """Raises ValueError where the keys that these knobs protect are more than the budget."""
        protected = sum(getattr(self, name) for name in knobs)
        if protected > self.budget:
            raise ValueError(
                f"{self.name}: {' + '.join(knobs)} = {protected} is above the budget of {self.budget}. "
                "Raise the budget or protect fewer keys"
            )


@dataclass(frozen=True)
class ScoredEviction(EvictionMethod):
    """An eviction method that ranks keys by the attention they received.

    With memory="mean" each layer and KV head holds one slot beside its budget: the mean m of the keys that it evicted, as they
    were cached, and the mean of their values. A query reads it as c keys, c being how many were evicted: its logit is
    q · m / √D + log c. Where the c keys are equal this is what the dense model reads; else it is the least attention that
    keys of this mean can have (Jensen), so that it never takes more than was there.
    """

    reduction: str = knob(
        "sum", choices=REDUCTIONS, help="how the attention of the query heads that share a KV head becomes one number"
    )
    value_norm: bool = knob(False, help="weigh the attention a key receives by the norm of its value")
    memory: str = knob(
        "none",
        choices=("none", "mean"),
        help="mean: the mean key and value of what was evicted are held in one more slot, which is read as so many keys",
    )

    @property
    def remembers(self) -> bool:
        return self.memory == "mean"


def forgetting_factor_of(factor: ForgettingFactor, layer: LayerShape) -> ForgettingFactor:
    """The layer's own factor: a number, a tuple with one per KV head, or a mapping from token class.

    Raises ValueError where a list does not have one entry per layer, or an inner list not one per KV head.
    """
    if not isinstance(factor, tuple):
        return factor
    if len(factor) != layer.n_layers:
        raise ValueError(f"forgetting_factor lists {len(factor)} layers and the model has {layer.n_layers}")
    own: ForgettingFactor = factor[layer.index]
    if isinstance(own, tuple) and len(own) != layer.n_kv_heads:
        raise ValueError(f"forgetting_factor lists {len(own)} heads and the model has {layer.n_kv_heads} KV heads")
    return own


def normalised_factor(name: str, factor: Any) -> ForgettingFactor:
    """Lists become tuples; every number must lie in [0, 1] and every class must be known."""
    if isinstance(factor, Mapping):
        classes = [class_named(key) for key in factor]
        if len(set(classes)) < len(classes):
            raise ValueError(
                f"{name}: a token class is given twice, once by its former name: {', '.join(map(str, factor))}"
            )
        factor = dict(zip(classes, factor.values(), strict=True))
        unknown = sorted(str(key) for key in set(factor) - {*FORGETTING_CLASSES, "other"})
        if unknown:
            raise ValueError(
                f"{name}: {told(unknown[0])} is no token class; there are {', '.join(FORGETTING_CLASSES)} and other"
            )
        return {key: _factor_number(name, value) for key, value in sorted(factor.items())}
    factor = _plain(factor)
    if not isinstance(factor, list):
        return _factor_number(name, factor)
    return tuple(
        tuple(_factor_number(name, number) for number in item) if isinstance(item, list) else _factor_number(name, item)
        for item in factor
    )


def _plain(value: Any) -> Any:
    """Lists of numbers, for lists, tuples and arrays of NumPy or torch in each other."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _factor_number(name: str, value: Any) -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: a forgetting factor lies between 0 and 1; got {told(value)}")
    return float(value) + 0.0  # −0 is spelled 0
