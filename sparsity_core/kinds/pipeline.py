"""The pipeline: one method per stage, and the one text that names it everywhere."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from sparsity_core.kinds.decode import SelectionMethod
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
    "decode": SelectionMethod,
}


@dataclass(frozen=True)
class Pipeline:
    """One method per stage, or none, applied in this order; no method at all is the dense model."""

    weights: WeightMethod | None = None
    gate: GateMethod | None = None
    prefill: PrefillMethod | None = None
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


_STAGE = re.compile(r"\s*(\w+)\s*=\s*(?=\w+\s*(?:\(|$|\s))")


def spelled_stages(text: str) -> list[tuple[str, str]]:
    """[(stage, call)] of `a=f(x, y) b=g(z)`; none of `dense`. Raises ValueError for a text that spells no stages."""
    if text == "dense":
        return []
    stages, rest = [], text
    while rest:
        match = _STAGE.match(rest)
        if match is None:
            raise ValueError(
                f"cannot read {told(rest)}: a pipeline is 'dense' or stages such as eviction=a2sf(budget=64)"
            )
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
        raise ValueError(f"cannot read {told(text)}: a bracket is left open")
    return len(text)


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
