"""How a gate is trained, and which gates there are. No torch here: pages read these before a model is needed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_core.record import command_line
from sparsity_core.work import ASSETS

SHIPPED = ASSETS / "gates"
_WARM_UP, _COOL_DOWN = 0.05, 0.2  # of the steps


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Training:
    """How a gate is trained. Raises ValueError for settings out of range."""

    gamma: float = setting(0.3, "what a kept (query, key) pair costs, nats")
    steps: int = setting(400, "each over a batch of text")
    batch: int = setting(1, "stretches a step, read one at a time and their gradients added up")
    length: int = setting(512, "tokens of a stretch")
    rank: int = setting(64, "r; that of `start` where there is one")
    learning_rate: float = setting(2e-3, "of AdamW, for the gate")
    base_rate: float = setting(0.0, "above 0 the base model is trained too, with this rate (the paper: 1e-4)")
    distil: bool = setting(True, "learn the dense model's distributions, not the text's next tokens")
    delay: int = setting(0, "steps before γ counts")
    a_first: float = setting(1.0, "the sparse sigmoid's a at the first step")
    a_last: float = setting(8.0, "and at the last")
    propagate_in_depth: bool = setting(False, "what a layer drops, the layers above drop too")
    seed: int = setting(0, "of the stretches and of the first weights")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if not 0.0 <= self.gamma < math.inf:
            raise ValueError(f"gamma, what a kept pair costs, is at least 0; got {self.gamma:g}")
        if not 0.0 < self.learning_rate < math.inf or not 0.0 <= self.base_rate < math.inf:
            raise ValueError("learning_rate is above 0, and base_rate at least 0")
        if not 0 <= self.delay < self.steps:
            raise ValueError(f"delay is from 0 to below the {self.steps} steps; got {self.delay}")
        if not 1.0 <= self.a_first <= self.a_last < math.inf:
            raise ValueError(f"a rises from at least 1; got {self.a_first:g} to {self.a_last:g}")

    def sharpness(self, step: int) -> float:
        """a of a step, on a cosine."""
        share = (1.0 - math.cos(math.pi * step / max(1, self.steps - 1))) / 2.0
        return self.a_first + (self.a_last - self.a_first) * share

    def rate(self, step: int) -> float:
        """The share of the learning rate that a step takes: a short rise, and a fall over the last fifth."""
        rise = (step + 1) / max(1.0, _WARM_UP * self.steps)
        fall = (self.steps - step) / max(1.0, _COOL_DOWN * self.steps)
        return min(1.0, rise, fall)


def sparse_sigmoid(x: np.ndarray, a: float) -> np.ndarray:
    """σ_a(x) to draw it: p^(a−1) − (1−p)^(a−1) = (a−1) x by bisection; the sigmoid at a = 1."""
    if a == 1.0:
        return np.asarray(1.0 / (1.0 + np.exp(-x)))
    low, high = np.zeros_like(x), np.ones_like(x)
    for _ in range(50):
        p = (low + high) / 2.0
        below = p ** (a - 1.0) - (1.0 - p) ** (a - 1.0) < (a - 1.0) * x
        low, high = np.where(below, p, low), np.where(below, high, p)
    return np.asarray((low + high) / 2.0)


def family(fingerprint: str | None = None) -> dict[float, Path]:
    """The gates that ship with the embedded model, by their γ; all of them, or those of a model of this fingerprint."""
    found = {}
    for path in sorted(SHIPPED.glob("*.json")):
        note = json.loads(path.read_text(encoding="utf-8"))
        if fingerprint in (None, note["fingerprint"]):
            found[float(note["gamma"])] = path.with_suffix(".safetensors")
    return dict(sorted(found.items()))


def recipe_of(path: str | Path) -> dict[str, Any] | None:
    """What a gate's card says of its training; None where the gate or its card is missing."""
    try:
        if not Path(path).with_suffix(".safetensors").exists():
            return None
        return dict(json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def command_of(recipe: dict[str, Any]) -> str:
    """The command that trains a gate of this recipe again, given its text and the gate that it went on from."""
    said = {item.name: recipe[item.name] for item in fields(Training)}
    changed = {item.name for item in fields(Training) if said[item.name] != item.default}
    return command_line(
        "train dcp",
        model=recipe["model"],
        **{name: value for name, value in said.items() if name in {*changed, "gamma"}},
        start="GATE" if recipe["start"] else None,
        file="TEXT" if recipe.get("text") == "given" else None,
        out="gate",
    )
