"""Forgetting factors that were fitted to a model, one for each layer and KV head, as a file. No torch here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsity_core.work import ASSETS, read_regular, write_whole

if TYPE_CHECKING:
    from sparsity_core.models import Model

SHIPPED = ASSETS / "factors" / "smollm2-135m.json"  # of the embedded model


@dataclass(frozen=True, eq=False)
class Factors:
    """The forgetting factor of each layer and KV head, and how it was found."""

    values: np.ndarray  # float64 [L, Hkv], each in [0, 1]
    recipe: dict[str, Any] = field(
        default_factory=dict
    )  # model, fingerprint, text's hash, ratios, blocks, length, seed, grid

    def save(self, path: str | Path) -> None:
        """Writes one JSON file. Raises OSError where the folder cannot be written."""
        rows = ",\n  ".join(json.dumps(row) for row in self.values.tolist())
        note = json.dumps(self.recipe, indent=1)
        write_whole(Path(path), f'{{"factors": [\n  {rows}],\n"recipe": {note}}}\n'.encode())

    @classmethod
    def load(cls, path: str | Path) -> Factors:
        """Raises ValueError for a file that is missing, or holds no factors."""
        try:
            said = json.loads(read_regular(Path(os.path.expanduser(path))))
            values, recipe = np.asarray(said["factors"], np.float64), dict(said["recipe"])
        except OSError as error:
            raise ValueError(
                f"a2sf: there are no factors at {path} ({error.strerror}): make them by `sparselens train a2sf`"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            values, recipe = np.zeros(0), {}
        if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"a2sf: {path} holds no forgetting factors, a list for each layer of numbers from 0 to 1: make them by "
                "`sparselens train a2sf`"
            )
        return cls(values, recipe)

    def check(self, model: Model) -> None:
        """Raises ValueError where these are another model's."""
        from sparsity_core.models import EMBEDDED

        own = (model.arch.n_layers, model.arch.n_kv_heads)
        # The fingerprint is of the weights as they were fitted; the embedded model is the same in any other dtype.
        same = self.recipe.get("fingerprint") == model.fingerprint
        rounded = model.name == self.recipe.get("model") == EMBEDDED and self.recipe.get("dtype") != model.dtype_name
        if self.values.shape != own or not (same or rounded):
            raise ValueError(
                f"a2sf: the factors are of {self.recipe.get('model', 'another model')} (layers and KV heads {self.values.shape}) "
                f"and not of {model.name} {own}: make some by `sparselens train a2sf --model {model.name}`, or leave factors out"
            )


def factors_for(model: Model, source: str) -> Factors:
    """The factors of a file, or "auto": those that ship for the embedded model. Raises ValueError where they do not fit."""
    found = Factors.load(SHIPPED if source == "auto" else source)
    found.check(model)
    return found
