"""The pipeline: one method per stage, and the one text that names it everywhere."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from tokenize import COMMENT, ERRORTOKEN, NAME, NL, OP
from typing import Any, NamedTuple

from sparsity_core.kinds.decode import DecodeMethod
from sparsity_core.kinds.eviction import EvictionMethod
from sparsity_core.kinds.gate import GateMethod
from sparsity_core.kinds.method import Method
from sparsity_core.kinds.prefill import PrefillMethod
from sparsity_core.kinds.registry import get
from sparsity_core.kinds.spelling import MOST_SIGNS, nearest, parse_expression, parse_value, told
from sparsity_core.kinds.weights import WeightMethod

STAGES: dict[str, type[Method]] = {
    "weights": WeightMethod,
    "gate": GateMethod,
    "prefill": PrefillMethod,
    "eviction": EvictionMethod,
    "decode": DecodeMethod,
}


@dataclass(frozen=True)
class Pipeline:
    """One method per stage, or none, applied in this order; no method at all is the dense model."""

    weights: WeightMethod | None = None
    gate: GateMethod | None = None
    prefill: PrefillMethod | None = None
    eviction: EvictionMethod | None = None
    decode: DecodeMethod | None = None

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

    def check(self, generates: bool, shares_heads: bool = False) -> None:
        """Raises ValueError, with the reason, where two of the stages cannot run together.

        A run lets every query of its text read a part of the keys, a generation (`generates`) those after the prompt alone. Where
        a model's query heads share KV heads (`shares_heads`), they read the same keys.
        """
        decode, prefill = self.decode, self.prefill
        if decode is not None and decode.needs_all_keys and (self.gate is not None or self.eviction is not None):
            raise ValueError(decode.needs_all_keys)
        if decode is not None and self.eviction is not None and self.eviction.remembers:
            raise ValueError(
                f"{decode.name} chooses among the keys that are held, and queries of {self.eviction.name} read a memory "
                "beside them: choose memory=none, or leave decode out"
            )
        if self.gate is not None and self.weights is not None and self.weights.turns_stream:
            raise ValueError(
                f"{self.weights.name} changes the residual stream that the gate reads: leave one of the two out"
            )
        if decode is not None and prefill is not None and prefill.per_query_head and shares_heads and not generates:
            raise ValueError(
                f"{prefill.name} gives each query head keys of its own, and the query heads of a KV head read together in "
                f"{decode.name}: generate tokens, before which alone the prefill stage runs, or leave one of the two out"
            )

    def inputs(self) -> dict[str, str]:
        """Digests of what decides the result beside the pipeline's text: `weights.policy`, `decode.calibration text`, …"""
        return {f"{stage}.{name}": value for stage, m in self.methods.items() for name, value in m.inputs().items()}

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
        if len(text) > MOST_SIGNS:
            raise ValueError(f"a pipeline has at most {MOST_SIGNS:,} characters; got {len(text):,}")
        stages: dict[str, Method] = {}
        for stage, call in spelled_stages(text):
            if stage not in STAGES:
                raise ValueError(f"there is no stage {told(stage)}; {nearest(stage, list(STAGES))}")
            if stage in stages:
                raise ValueError(f"the {stage} stage is given twice")
            stages[stage] = _parse_method(call)
        return cls(**stages)  # type: ignore[arg-type]


def spelled_stages(text: str) -> list[tuple[str, str]]:
    """[(stage, call)] of `a=f(x, y) b=g(z)`; none of `dense`. Raises ValueError for a text that spells no stages."""
    if text == "dense":
        return []
    found = list(_outer_tokens(text))
    if not found:
        raise ValueError("the pipeline is empty: write 'dense' for the plain model")
    starts = [i for i, pair in enumerate(pairwise(found)) if pair[0].type == NAME and pair[1].string == "="]
    if not starts or starts[0] > 0:
        raise ValueError(_unreadable(text))
    stages = []
    for start, end in pairwise([*starts, len(found)]):
        call = slice(found[start + 1].end, found[end].start if end < len(found) else len(text))
        stages.append((found[start].string, text[call].strip()))
    return stages


def _unreadable(text: str) -> str:
    return f"cannot read {told(text)}: a pipeline is 'dense' or stages such as eviction=a2sf(budget=64)"


class _Token(NamedTuple):
    type: int
    string: str
    start: int  # place in the text
    end: int


def _outer_tokens(text: str) -> Iterator[_Token]:
    """Python's tokens of a text that stand outside all its brackets; of a bracketed part, the brackets that enclose it.

    Raises ValueError for a bracket left open or closed twice and for signs that Python does not know.
    """
    lines = io.StringIO(f"(\n{text}\n)")  # within brackets a new line and an indent mean nothing
    line_starts = list(accumulate(map(len, text.split("\n")), lambda start, length: start + length + 1, initial=0))
    depth = 0
    try:
        for kind, string, (row, column), (last_row, last_column), _ in tokenize.generate_tokens(lines.readline):
            inside = 2 <= row <= len(line_starts)
            closes = kind == OP and string in ")]}"
            depth -= closes
            if inside:
                start, end = line_starts[row - 2] + column, line_starts[last_row - 2] + last_column
                if depth < 1 or kind in (ERRORTOKEN, COMMENT):
                    raise ValueError(_unreadable(text[start:]))
                if depth == 1 and kind != NL:
                    yield _Token(kind, string, start, end)
            depth += kind == OP and string in "([{"
    except tokenize.TokenError as error:
        left_open = f"cannot read {told(text)}: a bracket is left open, or a quote"
        raise ValueError(left_open if "EOF" in str(error) else _unreadable(text)) from None
    except (SyntaxError, UnicodeError):  # a NUL, or half a surrogate pair
        raise ValueError(_unreadable(text)) from None


def _parse_method(call: str) -> Method:
    unreadable = f"cannot read {told(call)}: a method is written name(knob=value, …)"
    node = parse_expression(call, unreadable)
    if isinstance(node, ast.Name):
        node = ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError(unreadable)
    cls = get(node.func.id)
    known = [knob_.name for knob_ in cls.knobs()]
    values: dict[str, Any] = {}
    for given in node.keywords:
        if given.arg is None:
            raise ValueError(unreadable)
        if given.arg in values:
            raise ValueError(f"{cls.name}: {given.arg} is given twice")
        if given.arg not in known:
            raise ValueError(f"{cls.name} has no knob {told(given.arg)}; {nearest(given.arg, known)}")
        values[given.arg] = parse_value(given.value)
    return cls(**values)
