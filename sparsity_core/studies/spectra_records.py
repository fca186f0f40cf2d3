"""What weights methods do to a model, as records on disk that need neither the model nor torch to be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from sparsity_core.kinds import WeightMethod
from sparsity_core.models import evaluation_digest
from sparsity_core.record import notebook_table
from sparsity_core.work import ASSETS, cache_dir, opened, read_regular, sealed, shelve, used, write_whole

FORMAT = 1  # raised when a stored study can no longer be read as it was meant
RATIO = 0.25  # at which methods are compared until another is chosen
SHIPPED_SPECTRA = ASSETS / "spectra"

MEASURES = (
    "ks",  # Kolmogorov–Smirnov distance D of the spectra before and after
    "ks_at",  # the singular value at which it is reached
    "scaled_ks",  # D once the spectrum after is divided by √(1 − ratio)
    "wasserstein",  # Wasserstein-1 over the mean before
    "energy_lost",  # share of Σ σ² that is gone
    "stable_rank_before",
    "stable_rank_after",
    "effective_rank_before",
    "effective_rank_after",
)


@dataclass(frozen=True, eq=False)
class _Record:
    """Arrays and plain values in one .npz file."""

    def save(self, path: Path) -> None:
        """Raises OSError where the folder cannot be written."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in values.items() if k not in arrays}
        data = sealed({"plain": np.asarray(json.dumps({"format": FORMAT, **plain})), **arrays}, _name_of(path))
        if path.is_relative_to(cache_dir()):
            shelve(path, data)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError for a file that is damaged, of another format, or of another record."""
        try:
            arrays = opened(read_regular(path), _name_of(path))
            plain = json.loads(str(arrays.pop("plain")))
            if plain.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
            return cls(**plain, **arrays)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path.name} cannot be read ({error}): delete it, it is computed again") from error


def _name_of(path: Path) -> str:
    """What a record is of: the model's folder and the file's name, which tell the weights and the method."""
    return f"{path.parent.name}/{path.name}"


@dataclass(frozen=True, eq=False)
class Uncut(_Record):
    """A model's FFN matrices before any cut. L layers, M matrices, n singular values, N neurons."""

    model: str
    fingerprint: str
    dtype: str
    matrices: tuple[str, ...]  # gate (where there is one), up, down
    first: str  # whose rows are measured below, and whose spectrum is a policy's reward
    before: np.ndarray  # float32 [L, M, n]: singular values, descending
    row_norm: np.ndarray  # float32 [L, N], of the first matrix
    leverage: np.ndarray  # float32 [L, N], of the first matrix

    def _repr_html_(self) -> str:
        """How a notebook shows it: whose matrices, and their largest singular values."""
        largest = np.nanmax(self.before, axis=(0, 2))
        facts = [("model", self.model), ("layers × neurons", f"{self.n_layers} × {self.n_neurons:,}")]
        facts += [(f"largest σ of {name}", f"{value:.4g}") for name, value in zip(self.matrices, largest, strict=True)]
        return notebook_table("Spectra before any cut", facts)

    @property
    def n_layers(self) -> int:
        return self.before.shape[0]

    @property
    def n_neurons(self) -> int:
        return self.row_norm.shape[1]

    def spectrum(self, layer: int, matrix: str) -> np.ndarray:
        return known_values(self.before[layer, self.matrices.index(matrix)])


@dataclass(frozen=True, eq=False)
class Ranked(_Record):
    """How a method ranks the neurons, whatever the ratio."""

    method: str
    importance: np.ndarray  # float32 [L, N]
    inputs: dict[str, str] = field(default_factory=dict)  # digests of the files and texts that it was made of

    def _repr_html_(self) -> str:
        """How a notebook shows it: what was ranked."""
        layers, neurons = self.importance.shape
        return notebook_table(
            "Ranking of neurons", [("method", self.method), ("layers × neurons", f"{layers} × {neurons:,}")]
        )


@dataclass(frozen=True, eq=False)
class WeightStudy(_Record):
    """What one method does to one model: which neurons stay, every matrix's spectrum, and the perplexity."""

    model: str
    fingerprint: str
    dtype: str
    method: str
    ratio: float
    matrices: tuple[str, ...]
    n_neurons: int
    measures: np.ndarray  # float64 [L, M, len(MEASURES)]
    after: np.ndarray  # float32 [L, M, n]: singular values, nan where there are fewer; empty where they were left out
    bits: np.ndarray  # uint8 [L, ⌈N / 8⌉]: which neurons stay
    true_cut: float
    perplexity: float  # nan where it was not measured
    dense_perplexity: float
    convention: str
    seconds: float
    notes: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)  # digests of the files and texts that it was made of

    def _repr_html_(self) -> str:
        """How a notebook shows it: what was cut, and what that did."""
        facts = [
            ("model", self.model),
            ("method", self.method),
            ("parameters cut", f"{self.true_cut:.1%} of the whole model"),
        ]
        distances = zip(self.matrices, self.measure("ks").mean(axis=0), strict=True)
        facts += [(f"KS distance of {name}, mean over layers", f"{value:.4f}") for name, value in distances]
        if np.isfinite(self.perplexity):
            facts.append(
                ("perplexity", f"{self.perplexity:.3f}, {self.dense_perplexity:.3f} before ({self.convention})")
            )
        return notebook_table("Study of a cut", facts, self.notes)

    @property
    def kept(self) -> np.ndarray:
        """bool [L, N]"""
        return np.unpackbits(self.bits, axis=1, count=self.n_neurons).astype(bool)

    def measure(self, name: str) -> np.ndarray:
        """float64 [L, M]"""
        return self.measures[:, :, MEASURES.index(name)]

    def of(self, layer: int, matrix: str) -> dict[str, float]:
        return dict(zip(MEASURES, self.measures[layer, self.matrices.index(matrix)].tolist(), strict=True))

    def spectrum(self, layer: int, matrix: str) -> np.ndarray | None:
        return known_values(self.after[layer, self.matrices.index(matrix)]) if self.after.size else None

    def light(self) -> WeightStudy:
        """Without the spectra, whose measures stay."""
        return replace(self, after=np.zeros((0, 0, 0), np.float32))


def known_values(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)].astype(np.float64)


_R = TypeVar("_R", bound=_Record)


def _folders(fingerprint: str, dtype: str) -> list[Path]:
    name = f"{fingerprint}-{dtype}"
    return [cache_dir() / "spectra" / name, SHIPPED_SPECTRA / name]


def ranked_inputs(method: WeightMethod) -> dict[str, str]:
    """Digests of what decides how a method ranks neurons, beside its knobs and the model."""
    return method.inputs()


def study_inputs(method: WeightMethod) -> dict[str, str]:
    """Digests of what decides a study, beside the method's knobs and the model."""
    return {**method.inputs(), "evaluation text": evaluation_digest()}


def _file(kind: str, method: WeightMethod | str, inputs: dict[str, str]) -> str:
    asked = f"{FORMAT} {method} {json.dumps(inputs, sort_keys=True)}"
    return f"{kind}-{hashlib.sha256(asked.encode()).hexdigest()[:24]}.npz"


def _find(kind: type[_R], fingerprint: str, dtype: str, name: str) -> _R | None:
    for folder in _folders(fingerprint, dtype):
        with contextlib.suppress(OSError, ValueError):
            found = kind.load(folder / name)
            if folder.is_relative_to(cache_dir()):
                used(folder / name)
            return found
    return None


def find_uncut(fingerprint: str, dtype: str) -> Uncut | None:
    return _find(Uncut, fingerprint, dtype, "uncut.npz")


def find_ranked(fingerprint: str, dtype: str, method: WeightMethod) -> Ranked | None:
    """How the method ranks this model's neurons at any ratio, where that was computed before; else None."""
    return _find(Ranked, fingerprint, dtype, _file("ranked", at_ratio(method, RATIO), ranked_inputs(method)))


def find_study(fingerprint: str, dtype: str, method: WeightMethod) -> WeightStudy | None:
    return _find(WeightStudy, fingerprint, dtype, _file("study", method, study_inputs(method)))


def bundled_uncut(model: str, dtype: str) -> Uncut | None:
    """The model of this name as it ships with the library, whose fingerprint is thereby known before it is loaded."""
    for path in SHIPPED_SPECTRA.glob(f"*-{dtype}/uncut.npz"):
        with contextlib.suppress(OSError, ValueError):
            found = Uncut.load(path)
            if found.model == model:
                return found
    return None


def keep_record(
    record: Uncut | Ranked | WeightStudy, fingerprint: str, dtype: str, folder: Path | None = None
) -> str | None:
    """Stores a record. Returns None, or the sentence that says why it could not be kept."""
    named = {Ranked: "ranked", WeightStudy: "study"}
    name = "uncut.npz" if isinstance(record, Uncut) else _file(named[type(record)], record.method, record.inputs)
    folder = cache_dir() / "spectra" if folder is None else folder
    try:
        record.save(folder / f"{fingerprint}-{dtype}" / name)
    except OSError as error:
        return (
            f"The result is shown but could not be kept in {folder} ({error.strerror or error}): free some space, or set "
            "SPARSELENS_CACHE to a folder you can write."
        )
    return None


def at_ratio(method: WeightMethod, ratio: float) -> WeightMethod:
    """The method with another ratio."""
    return replace(method, ratio=ratio)
