"""The kinds of pruning method, their registry, and the pipeline that names one method per stage.

A method is a frozen dataclass whose fields are its knobs: widgets, tables, sweeps and links are made from them.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparsity_core.rules import parse_rules

if TYPE_CHECKING:
    import torch

    from sparsity_core.compress import CompressedModel, Ranking
    from sparsity_core.ffn import FeedForward
    from sparsity_core.gate import Gate
    from sparsity_core.models import Model
    from sparsity_core.selection import Selector

REDUCTIONS = ("sum", "mean", "max")  # as the kernels have them; importing those would import torch with every page
RULES = ("protect", "drop")  # the knobs of a user's own rules, of every method that drops for good
Progress = Callable[[float, str], None]  # (share done in 0…1, what is being done); raises to cancel
FORGETTING_CLASSES = ("number", "punctuation", "function", "name", "word", "space")


def silent(share: float, doing: str) -> None:
    pass


def knob(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field that is a method's setting.

    `low` and `high` are the range that a slider offers; `at_least` and `at_most` what is valid at all.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "at_least": at_least,
        "at_most": at_most,
        "choices": tuple(choices) if choices else None,
    }
    return field(default=default, metadata=metadata)


class Method:
    """A pruning method: subclasses are frozen dataclasses, registered with @register."""

    stage: ClassVar[str]
    name: ClassVar[str]
    source: ClassVar[str]
    equation: ClassVar[str]  # LaTeX; shown on the pages

    def __post_init__(self) -> None:
        for knob_ in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, knob_.name)
            if getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
                value = value.item()
                object.__setattr__(self, knob_.name, value)
            _check_knob(self.name, knob_, value)
            if isinstance(knob_.default, float) and knob_.name != "forgetting_factor":
                object.__setattr__(self, knob_.name, float(value) + 0.0)  # one spelling: 1 is 1.0, and −0 is 0

    @classmethod
    def knobs(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The method's fields, a user's own rules last."""
        return tuple(sorted(dataclasses.fields(cls), key=lambda f: f.name in RULES))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The canonical spelling: the budget, ratio or tokens, and every knob that is not at its default."""
        shown = [
            f"{knob_.name}={_spell(getattr(self, knob_.name))}"
            for knob_ in self.knobs()
            if knob_.name in ("budget", "ratio", "tokens") or getattr(self, knob_.name) != knob_.default
        ]
        return f"{self.name}({', '.join(shown)})"

    def __hash__(self) -> int:
        return hash(str(self))


class WeightMethod(Method):
    """Decides which weights stay."""

    stage = "weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.name, getattr(self, "ratio", 0.0))

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        """The model with fewer weights; `model` itself is left as it is. Raises ValueError where it cannot be cut so."""
        raise TypeError(f"{type(self).__name__} must define compress")


@dataclass(frozen=True)
class NeuronMethod(WeightMethod):
    """Ranks the neurons of each feed-forward block; the least important go, with their rows and their column."""

    ratio: float = knob(0.25, low=0.0, high=0.75, at_least=0.0, help="share of each layer's FFN neurons removed")
    allocation: str = knob(
        "uniform",
        choices=("uniform", "equal_ks"),
        help="the same ratio in every layer, or ratios of equal KS distance whose mean is the ratio",
    )
    multiple: int = knob(
        1, low=1, high=128, at_least=1, help="kept neurons are rounded to a multiple of this; hardware likes 8, 64"
    )

    calibrated: ClassVar[bool] = False  # whether it reads text

    def compress(self, model: Model, progress: Progress = silent) -> CompressedModel:
        from sparsity_core.compress import cut_neurons

        return cut_neurons(model, self, progress)

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        """One ranking per layer."""
        from sparsity_core.compress import Ranking

        return [Ranking(self.importance(block)) for block in blocks]

    def importance(self, block: FeedForward) -> torch.Tensor:
        """[n]: how much each neuron of this block matters, from its weights alone."""
        raise TypeError(f"{type(self).__name__} must define importance or rank")


def check_ratio(name: str, ratio: float) -> None:
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"{name}: ratio is the share removed, 0 to below 1; got {ratio:g}")


@dataclass(frozen=True)
class Ruled(Method):
    """A method that drops tokens for good, under rules of the user's own."""

    protect: str = knob("", help="tokens never dropped: positions, spans and expressions, as in 0-3, 17, /[0-9]+/")
    drop: str = knob(
        "", help="tokens dropped as soon as they are read, in every layer and head; written as `protect` is"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for rules in (self.protect, self.drop):
            parse_rules(rules)


@dataclass(frozen=True)
class GateMethod(Ruled):
    """Decides, by what it learned, which earlier tokens a token drops for good."""

    stage = "gate"

    def gate(self, model: Model) -> Gate:
        """The trained gate. Raises ValueError where there is none for this model."""
        raise TypeError(f"{type(self).__name__} must define gate")


class SelectionMethod(Method):
    """Decides which cached keys each query reads; forgets between queries."""

    stage = "decode"


@dataclass(frozen=True)
class DecodeMethod(SelectionMethod):
    """Reads a share of the cached keys at each step, chosen by an approximate score; the KV head's query heads together."""

    tokens: float = knob(0.25, low=0.03, high=1.0, at_most=1.0, help="share of the context that a query reads")
    dense_layers: int = knob(2, low=0, high=8, at_least=0, help="first layers that read everything")
    dense_every: int = knob(
        0, low=0, high=64, at_least=0, help="every so many steps one reads everything; 0: none does"
    )
    layer_tokens: str = knob(
        "", help="a share for each layer in place of `tokens`, as in 1, 0.5, 0.25; the last goes on"
    )
    reduction: str = knob("sum", choices=REDUCTIONS, help="of the scores, over the query heads that share a KV head")

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in per_layer(f"{self.name}: layer_tokens", self.layer_tokens, float):
            if not 0 < share <= 1:
                raise ValueError(f"{self.name}: layer_tokens are shares of the context, above 0 to 1; got {share:g}")
        if not self.tokens > 0:
            raise ValueError(
                f"{self.name}: tokens is the share of the context that is read, above 0 to 1; got {self.tokens:g}"
            )

    @property
    def needs_all_keys(self) -> str:
        """Why no key may leave the cache beside this method, and what to do about it; empty where keys may."""
        return ""

    def tokens_of(self, layer: int) -> float:
        """The share of the context that a query of this layer reads."""
        own = per_layer(f"{self.name}: layer_tokens", self.layer_tokens, float)
        return own[min(layer, len(own) - 1)] if own else self.tokens

    def selectors(self, model: Model, progress: Progress) -> Callable[[int], Selector]:
        """Makes the selector of a layer, anew for each run. Raises ValueError where the method does not fit the model."""
        raise TypeError(f"{type(self).__name__} must define selectors")


def per_layer(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of a list such as `1, 0.5, 0.25`, one per layer; none of an empty text. Raises ValueError otherwise."""
    try:
        return [kind(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(f"{name} is a list of numbers, one per layer, as in 1, 0.5, 0.25; got {text!r}") from None


@dataclass(frozen=True)
class LayerShape:
    """What an eviction method may ask about the layer that it plans for."""

    index: int
    n_layers: int
    n_kv_heads: int
    seed: int = 0


@dataclass(frozen=True)
class ScanRule:
    """One query in, at most one key out: the numbers of `kernels.evict_scan` for one layer."""

    budget: int | None  # None: unlimited
    decay: ForgettingFactor = 1.0  # a number, one per KV head, or one per token class
    n_sink: int = 0
    recent: int = 0
    scored: bool = True
    value_norm: bool = False
    reduction: str = "sum"
    noise: int | None = None  # the seed of the random score that a key arrives with
    re_rotate: bool = False


@dataclass(frozen=True)
class PrefillRule:
    """Dense attention over the prompt, one cut when it ends, then `then` for every later query."""

    budget: int | None  # None: nothing is cut
    decay: ForgettingFactor = 1.0
    queries: int | None = None  # only the last so many queries score; None: all
    pool: int = 1  # average pooling over this many neighbouring keys
    n_sink: int = 0
    recent: int = 0
    value_norm: bool = False
    reduction: str = "sum"
    then: ScanRule = ScanRule(budget=None)


ForgettingFactor = float | tuple[Any, ...] | Mapping[str, float]
DENSE = PrefillRule(budget=None)


@dataclass(frozen=True)
class EvictionMethod(Ruled):
    """Decides which cached keys stay, for good, per layer and KV head."""

    stage = "eviction"

    budget: int = knob(256, low=8, high=4096, at_least=1, at_most=10**9, help="keys kept per KV head")
    layer_budget: str = knob(
        "uniform",
        choices=("uniform", "pyramid"),
        help="the same budget in every layer, or a pyramid: 1.5 × at the bottom to 0.5 × at the top, equal in sum",
    )
    dense_layers: int = knob(0, low=0, high=8, at_least=0, help="first layers that keep everything")

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
        if rule.budget is not None and rule.n_sink + rule.recent > rule.budget:
            raise ValueError(
                f"{self.name}: layer {layer.index} keeps {rule.budget} keys, fewer than the {rule.n_sink} sinks + "
                f"{rule.recent} recent keys it protects. Raise the budget or protect fewer"
            )
        return rule

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule | PrefillRule:
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
    """An eviction method that ranks keys by the attention they received."""

    reduction: str = knob("sum", choices=REDUCTIONS, help="over the query heads that share a KV head")
    value_norm: bool = knob(False, help="weigh the attention a key receives by the norm of its value")


def forgetting_factor_of(factor: ForgettingFactor, layer: LayerShape) -> ForgettingFactor:
    """The layer's own factor: a number, a tuple with one per KV head, or a mapping from token class.

    Raises ValueError where a list does not have one entry per layer, or an inner list not one per KV head.
    """
    if not isinstance(factor, tuple):
        return factor
    if len(factor) != layer.n_layers:
        raise ValueError(f"forgetting_factor lists {len(factor)} layers and the model has {layer.n_layers}")
    own = factor[layer.index]
    if isinstance(own, tuple) and len(own) != layer.n_kv_heads:
        raise ValueError(f"forgetting_factor lists {len(own)} heads and the model has {layer.n_kv_heads} KV heads")
    return own


def normalised_factor(name: str, factor: Any) -> ForgettingFactor:
    """Lists become tuples; every number must lie in [0, 1] and every class must be known."""
    if isinstance(factor, Mapping):
        unknown = sorted(str(key) for key in set(factor) - {*FORGETTING_CLASSES, "other"})
        if unknown:
            raise ValueError(
                f"{name}: {unknown[0]!r} is no token class; there are {', '.join(FORGETTING_CLASSES)} and other"
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
        raise ValueError(f"{name}: a forgetting factor lies between 0 and 1; got {value!r}")
    return float(value) + 0.0  # −0 is spelled 0


def _check_knob(method: str, knob_: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError where a value is of the wrong kind or outside what the knob allows."""
    meta, default = knob_.metadata, knob_.default
    if knob_.name == "forgetting_factor":
        return
    if meta.get("choices"):
        if value not in meta["choices"]:
            raise ValueError(f"{method}: {knob_.name} is one of {', '.join(meta['choices'])}; got {value!r}")
    elif isinstance(default, str):
        if not isinstance(value, str) or (default and not value):
            raise ValueError(f"{method}: {knob_.name} is a word, or a path in quotes; got {value!r}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{method}: {knob_.name} is True or False; got {value!r}")
    elif isinstance(default, (int, float)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        numeric = isinstance(value, int) or (isinstance(default, float) and isinstance(value, float))
        if isinstance(value, bool) or not numeric or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{method}: {knob_.name} is {kind}; got {value!r}")
        if meta.get("at_least") is not None and value < meta["at_least"]:
            raise ValueError(f"{method}: {knob_.name} is at least {meta['at_least']}; got {value}")
        if meta.get("at_most") is not None and value > meta["at_most"]:
            raise ValueError(f"{method}: {knob_.name} is at most {meta['at_most']}; got {value}")


_REGISTRY: dict[str, type[Method]] = {}


def register(cls: type[Any]) -> type[Any]:
    """Makes a method known under its snake_case name. Raises ValueError for a name that is taken."""
    if "name" not in cls.__dict__:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    known = _REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"two methods are named {cls.name}: {known.__module__} and {cls.__module__}")
    setattr(cls, "__hash__", Method.__hash__)  # noqa: B010 -- a frozen dataclass would hash its fields, and a mapping has no hash
    _REGISTRY[cls.name] = cls
    return cls


def names(stage: str | None = None) -> list[str]:
    """The registered methods, of one stage or of all."""
    return sorted(name for name, cls in _REGISTRY.items() if stage in (None, cls.stage))


def get(name: str) -> type[Method]:
    """The class of a method. Raises ValueError, with the nearest known name, where there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"there is no method {name!r}; {_nearest(name, names())}")
    return _REGISTRY[name]


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none yet'}"


STAGES: dict[str, type[Method]] = {
    "weights": WeightMethod,
    "gate": GateMethod,
    "prefill": SelectionMethod,
    "eviction": EvictionMethod,
    "decode": SelectionMethod,
}


@dataclass(frozen=True)
class Pipeline:
    """One method per stage, or none, applied in this order; no method at all is the dense model."""

    weights: WeightMethod | None = None
    gate: GateMethod | None = None
    prefill: SelectionMethod | None = None
    eviction: EvictionMethod | None = None
    decode: SelectionMethod | None = None

    def __post_init__(self) -> None:
        for stage, kind in STAGES.items():
            method = getattr(self, stage)
            if method is not None and not isinstance(method, kind):
                if not isinstance(method, Method):
                    raise ValueError(f"the {stage} stage takes a method; got {method!r}")
                raise ValueError(
                    f"{method} is no method of the {stage} stage: write {method.stage}={method.name}, or choose another"
                )

    @property
    def methods(self) -> dict[str, Method]:
        """The stages that have a method."""
        return {stage: getattr(self, stage) for stage in STAGES if getattr(self, stage) is not None}

    def __str__(self) -> str:
        return " ".join(f"{stage}={method}" for stage, method in self.methods.items()) or "dense"

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline that `text` spells, e.g. `eviction=a2sf(budget=64, forgetting_factor=0.3)` or `dense`.

        Raises ValueError, with the nearest known name, for an unknown stage, method or knob.
        """
        text = text.strip()
        if text == "dense":
            return cls()
        stages: dict[str, Method] = {}
        for stage, call in _split_stages(text):
            if stage not in STAGES:
                raise ValueError(f"there is no stage {stage!r}; {_nearest(stage, list(STAGES))}")
            if stage in stages:
                raise ValueError(f"the {stage} stage is given twice")
            stages[stage] = _parse_method(call)
        return cls(**stages)  # type: ignore[arg-type]


_STAGE = re.compile(r"\s*(\w+)\s*=\s*(?=\w+\s*(?:\(|$|\s))")


def _split_stages(text: str) -> list[tuple[str, str]]:
    """[(stage, call)] of `a=f(x, y) b=g(z)`."""
    stages, rest = [], text
    while rest:
        match = _STAGE.match(rest)
        if match is None:
            raise ValueError(f"cannot read {rest!r}: a pipeline is 'dense' or stages such as eviction=a2sf(budget=64)")
        end = _end_of_call(rest, match.end())
        stages.append((match[1], rest[match.end() : end].strip()))
        rest = rest[end:].strip()
    if not stages:
        raise ValueError("the pipeline is empty: write 'dense' for the plain model")
    return stages


def _end_of_call(text: str, start: int) -> int:
    depth, quote, escaped = 0, "", False
    for at in range(start, len(text)):
        if quote:  # brackets and spaces in a quoted path mean nothing
            quote = "" if text[at] == quote and not escaped else quote
            escaped = text[at] == "\\" and not escaped
            continue
        if text[at] in "'\"":
            quote = text[at]
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        ends = text[at] == ")" or (text[at].isspace() and not text[at:].lstrip().startswith("("))
        if depth == 0 and ends:
            return at + 1
    if depth:
        raise ValueError(f"cannot read {text!r}: a bracket is left open")
    return len(text)


def _parse_method(call: str) -> Method:
    try:
        node = ast.parse(call, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):  # the last two where brackets are nested without end
        raise ValueError(f"cannot read {call!r}: a method is written name(knob=value, …)") from None
    if isinstance(node, ast.Name):
        node = ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError(f"cannot read {call!r}: a method is written name(knob=value, …)")
    cls = get(node.func.id)
    known = [knob_.name for knob_ in cls.knobs()]
    values: dict[str, Any] = {}
    for given in node.keywords:
        if given.arg is None:
            raise ValueError(f"cannot read {call!r}: a method is written name(knob=value, …)")
        if given.arg in values:
            raise ValueError(f"{cls.name}: {given.arg} is given twice")
        if given.arg not in known:
            raise ValueError(f"{cls.name} has no knob {given.arg!r}; {_nearest(given.arg, known)}")
        values[given.arg] = parse_value(given.value)
    return cls(**values)


def parse_value(node: ast.expr | str) -> Any:
    """A knob's value from its spelling: numbers, True, False, bare words, lists and {class: number}."""
    if isinstance(node, str):
        try:
            node = ast.parse(node.strip(), mode="eval").body
        except (SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"cannot read the value {node!r}") from None
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(parse_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {
            str(parse_value(k)): parse_value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"cannot read the value {ast.unparse(node)!r}") from None


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_spell(v) for v in value) + "]"
    bare = isinstance(value, str) and value.isascii() and value.isidentifier() and not keyword.iskeyword(value)
    return value if bare else repr(value)
