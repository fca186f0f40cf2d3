"""What a calibration of channels and a study of them hold. No torch here: pages read these before a model is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from sparsity_core.work import ASSETS, cache_dir, make_room, read_regular, used, write_whole

if TYPE_CHECKING:
    from sparsity_core.models import Model


STATISTICS = ("qk", "q", "k", "variance")
SHIPPED = ASSETS / "channels"


@dataclass(frozen=True, eq=False)
class Channels:
    """The calibration of one model: a magnitude per statistic, layer, query head and channel."""

    magnitudes: dict[str, np.ndarray]  # float32 [L, H, D] each
    n_kv_heads: int
    recipe: dict[str, Any] = field(default_factory=dict)  # model, fingerprint, text's hash, blocks, length, seed

    def per_kv_head(self, statistic: str) -> np.ndarray:
        """float32 [L, Hkv, D]: the mean over the query heads that share a KV head."""
        values = self.magnitudes[statistic]
        return values.reshape(values.shape[0], self.n_kv_heads, -1, values.shape[2]).mean(2)

    def order(self, statistic: str, layer: int, *, per_head: bool = False) -> np.ndarray:
        """int64 [Hkv, D], or [H, D] for each query head: the channels, the most telling first."""
        values = self.magnitudes[statistic][layer] if per_head else self.per_kv_head(statistic)[layer]
        return np.argsort(-values, axis=-1, kind="stable")

    def overlap(self, other: Channels, statistic: str, beside: str, r: int) -> np.ndarray:
        """float64 [L, Hkv]: share of the top r channels by `statistic` here that are among the top r by `beside` there."""
        found = []
        for layer in range(self.magnitudes[statistic].shape[0]):
            mine, theirs = self.order(statistic, layer)[:, :r], other.order(beside, layer)[:, :r]
            found.append([len(np.intersect1d(a, b)) / r for a, b in zip(mine, theirs, strict=True)])
        return np.asarray(found)

    def save(self, path: str | Path) -> None:
        """Writes <path>.safetensors and <path>.json. Raises OSError where the folder cannot be written."""
        path = Path(path)
        data = save_arrays({name: np.ascontiguousarray(values) for name, values in self.magnitudes.items()})
        note = {**self.recipe, "n_kv_heads": self.n_kv_heads, "blake2b": hashlib.blake2b(data).hexdigest()}
        # The card first: a process killed between the two leaves no weights that nothing accepts.
        write_whole(path.with_suffix(".json"), (json.dumps(note, indent=1) + "\n").encode())
        write_whole(path.with_suffix(".safetensors"), data)

    @classmethod
    def load(cls, path: str | Path) -> Channels:
        """Raises ValueError for files that are missing, damaged or no calibration."""
        path = Path(path)
        try:
            data = read_regular(path.with_suffix(".safetensors"))
            note = dict(json.loads(read_regular(path.with_suffix(".json"))))
            intact = note.pop("blake2b") == hashlib.blake2b(data).hexdigest()
            magnitudes = load_arrays(data)
            n_kv_heads = int(note.pop("n_kv_heads"))
        except OSError as error:
            raise ValueError(
                f"there is no calibration at {path} ({error.strerror}): calibrate the model first"
            ) from None
        except (ValueError, KeyError, TypeError, SafetensorError):
            intact = False
        if not intact or set(magnitudes) != set(STATISTICS):
            raise ValueError(f"{path} is no calibration, or it is damaged: calibrate the model again")
        return cls(magnitudes, n_kv_heads, note)

    def check(self, model: Model) -> None:
        """Raises ValueError where this is another model's calibration."""
        shape = self.magnitudes["qk"].shape
        own = (model.arch.n_layers, model.arch.n_heads, model.arch.head_dim)
        if self.recipe.get("fingerprint") != model.fingerprint or shape != own:
            raise ValueError(
                f"the calibration is of {self.recipe.get('model', 'another model')} (layers, heads, channels {shape}) and not "
                f"of {model.name} {own}: calibrate {model.name}"
            )


def find_channels(fingerprint: str) -> Channels | None:
    """The calibration of these weights that ships with the library or lies in the user's cache; a damaged one is none."""
    for path in _places(fingerprint):
        if path.with_suffix(".safetensors").exists():
            try:
                found = Channels.load(path)
            except ValueError:
                continue
            if found.recipe.get("fingerprint") == fingerprint:
                if path.is_relative_to(cache_dir()):
                    used(path.with_suffix(".safetensors"))
                return found
    return None


def keep_channels(found: Channels) -> Path | None:
    """Keeps a calibration in the user's cache; None where that cannot be written."""
    *_, path = _places(str(found.recipe["fingerprint"]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    except OSError:
        return None
    used(path.with_suffix(".safetensors"))
    make_room()
    return path


def _places(fingerprint: str) -> Iterator[Path]:
    yield SHIPPED / fingerprint
    yield cache_dir() / "channels" / fingerprint
