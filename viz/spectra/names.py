"""Names and looks that the figures of weights share."""

from __future__ import annotations

from sparsity_core.kinds import Pipeline
from viz.looks import NEUTRAL

VIEWS = {"distribution": "Distribution", "linear": "Linear", "log": "Logarithmic"}

DISTANCES = {
    "ks": "D",
    "scaled_ks": "D ÷ √(1 − ratio)",
    "wasserstein": "Wasserstein ÷ mean",
    "energy_lost": "energy lost",
}

BEFORE = NEUTRAL  # of the whole model


def method_name(spelled: str) -> str:
    """The name of a weights method that is spelled with its knobs."""
    method = Pipeline.parse(f"weights={spelled}").weights
    return method.name if method else ""
