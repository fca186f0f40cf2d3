"""A pruning policy's training, as its file tells it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsity_core.kinds import WeightMethod
from sparsity_core.work import ASSETS, cache_dir


@dataclass(frozen=True)
class History:
    """A policy's training: means over the layers, by episode."""

    ks: tuple[float, ...]  # of what the policy would keep after each episode
    reward: tuple[float, ...]
    starts: dict[str, float]  # mean KS of the rankings that it set out from
    ratio: float


def find_history(fingerprint: str, method: WeightMethod) -> History | None:
    """The training behind a method that learned what to cut on this model, read from its policy's JSON; else None."""
    values = {knob.name: getattr(method, knob.name) for knob in method.knobs()}
    if "policy" not in values:
        return None
    own = str(values["policy"])
    if own == "auto":
        folders = (ASSETS / "policies", cache_dir() / "policies")
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    else:
        paths = [Path(own).expanduser().with_suffix(".json")]
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            card = json.loads(path.read_text(encoding="utf-8"))
            if own == "auto" and (card["fingerprint"], card["variant"]) != (fingerprint, values.get("variant")):
                continue
            history = card["history"]
            return History(
                ks=tuple(float(np.mean(row)) for row in history["ks"]),
                reward=tuple(float(np.mean(row)) for row in history["reward"]),
                starts={name: float(np.mean(row)) for name, row in history.get("ks_of_starts", {}).items()},
                ratio=float(card["ratio"]),
            )
    return None
