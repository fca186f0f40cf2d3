"""What weights methods do to a model's FFN matrices, as records on disk that need neither the model nor torch to be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from sparsity_core.files import npz_bytes, write_whole
from sparsity_core.method import NeuronMethod, Progress, WeightMethod, get, names, silent
from sparsity_core.store import cache_dir

if TYPE_CHECKING:
    import torch

    from sparsity_core.compress import CompressedModel, Ranking
    from sparsity_core.ffn import FeedForward
    from sparsity_core.models import Model

FORMAT = 1  # raised when a stored study can no longer be read as it was meant
RATIO = 0.25  # at which methods are compared before anybody chose another
SEEDS = 3  # of a random baseline
ASSETS = Path(__file__).parent / "assets" / "spectra"
_BLOCK, _BLOCKS = 1024, 2  # of the evaluation text

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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, npz_bytes({"plain": np.asarray(json.dumps({"format": FORMAT, **plain})), **arrays}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError for a file that is damaged or of another format."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                plain = json.loads(str(stored["plain"]))
                arrays = {name: stored[name] for name in stored.files if name != "plain"}
            if plain.pop("format") != FORMAT:
                raise ValueError("of another version")
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
            return cls(**plain, **arrays)
        except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name} cannot be read ({error}): delete it, it is computed again") from error


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

    @property
    def n_layers(self) -> int:
        return self.before.shape[0]

    @property
    def n_neurons(self) -> int:
        return self.row_norm.shape[1]

    def spectrum(self, layer: int, matrix: str) -> np.ndarray:
        return _known(self.before[layer, self.matrices.index(matrix)])


@dataclass(frozen=True, eq=False)
class Ranked(_Record):
    """How a method ranks the neurons, whatever the ratio."""

    method: str
    importance: np.ndarray  # float32 [L, N]


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
        return _known(self.after[layer, self.matrices.index(matrix)]) if self.after.size else None

    def light(self) -> WeightStudy:
        """Without the spectra, whose measures stay."""
        return replace(self, after=np.zeros((0, 0, 0), np.float32))


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)].astype(np.float64)


def _stacked(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """float32 [L, M, n], nan beyond the end of a shorter one."""
    longest = max(len(values) for row in rows for values in row)
    out = np.full((len(rows), len(rows[0]), longest), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, values in enumerate(row):
            out[i, j, : len(values)] = values
    return out


# --- what is on disk ---

_R = TypeVar("_R", bound=_Record)


def _folders(fingerprint: str, dtype: str) -> list[Path]:
    name = f"{fingerprint}-{dtype}"
    return [cache_dir() / "spectra" / name, ASSETS / name]


def _file(kind: str, method: WeightMethod | str) -> str:
    return f"{kind}-{hashlib.sha256(f'{FORMAT} {method}'.encode()).hexdigest()[:24]}.npz"


def _find(kind: type[_R], fingerprint: str, dtype: str, name: str) -> _R | None:
    for folder in _folders(fingerprint, dtype):
        with contextlib.suppress(OSError, ValueError):
            return kind.load(folder / name)
    return None


def find_uncut(fingerprint: str, dtype: str) -> Uncut | None:
    return _find(Uncut, fingerprint, dtype, "uncut.npz")


def find_ranked(fingerprint: str, dtype: str, method: WeightMethod) -> Ranked | None:
    """How the method ranks this model's neurons, at any ratio, once it was asked."""
    return _find(Ranked, fingerprint, dtype, _file("ranked", at_ratio(method, RATIO)))


def find_study(fingerprint: str, dtype: str, method: WeightMethod) -> WeightStudy | None:
    return _find(WeightStudy, fingerprint, dtype, _file("study", method))


def bundled(model: str, dtype: str) -> Uncut | None:
    """The model of this name as it ships with the library, whose fingerprint is thereby known before it is loaded."""
    for path in ASSETS.glob(f"*-{dtype}/uncut.npz"):
        with contextlib.suppress(OSError, ValueError):
            found = Uncut.load(path)
            if found.model == model:
                return found
    return None


def keep(record: Uncut | Ranked | WeightStudy, fingerprint: str, dtype: str, folder: Path | None = None) -> str | None:
    """Stores a record. Returns None, or the sentence that says why it could not be kept."""
    named = {Ranked: "ranked", WeightStudy: "study"}
    name = "uncut.npz" if isinstance(record, Uncut) else _file(named[type(record)], record.method)
    folder = cache_dir() / "spectra" if folder is None else folder
    try:
        record.save(folder / f"{fingerprint}-{dtype}" / name)
    except OSError as error:
        return (
            f"The result is shown but could not be kept in {folder} ({error.strerror or error}): free some space, or set "
            "SPARSELENS_CACHE to a folder you can write."
        )
    return None


# --- methods and ratios ---


def at_ratio(method: WeightMethod, ratio: float) -> WeightMethod:
    """The method with another ratio; itself where it has none."""
    return replace(method, ratio=ratio) if "ratio" in [k.name for k in method.knobs()] else method  # type: ignore[type-var]


def is_interactive(method: WeightMethod) -> bool:
    """Whether one ranking answers for every ratio of a layer: neurons, and the same ratio in every layer."""
    return isinstance(method, NeuronMethod) and method.allocation == "uniform"


def contenders(ratio: float) -> list[WeightMethod]:
    """Every weights method at its defaults and this ratio; random baselines with several seeds."""
    found = []
    for name in names("weights"):
        cls: type[Any] = get(name)
        method = at_ratio(cls(), ratio)
        seeded = cls.source == "baseline" and "seed" in [knob.name for knob in cls.knobs()]
        found += [replace(method, seed=seed) for seed in range(SEEDS)] if seeded else [method]  # type: ignore[type-var]
    return found


def kept_neurons(importance: np.ndarray, ratio: float, multiple: int = 1) -> np.ndarray:
    """bool [N]: the most important neurons at a ratio; of equal ones the first. Raises ValueError where none would stay."""
    from sparsity_core.compress import kept_count

    kept = np.zeros(len(importance), bool)
    order = np.argsort(-importance.astype(np.float64), kind="stable")
    kept[order[: kept_count(len(importance), ratio, multiple)]] = True
    return kept


# --- computing ---


def measured(before: torch.Tensor, after: torch.Tensor, ratio: float) -> dict[str, float]:
    """Every measure of MEASURES of one matrix, from its singular values before and after."""
    from sparsity_core.spectrum import (
        effective_rank,
        energy,
        ks_distance,
        scaled_ks_distance,
        stable_rank,
        wasserstein,
    )

    raw = ks_distance(before, after)
    return {
        "ks": raw.statistic,
        "ks_at": raw.location,
        "scaled_ks": scaled_ks_distance(before, after, ratio).statistic,
        "wasserstein": wasserstein(before, after),
        "energy_lost": 1.0 - energy(after) / energy(before),
        "stable_rank_before": stable_rank(before),
        "stable_rank_after": stable_rank(after),
        "effective_rank_before": effective_rank(before),
        "effective_rank_after": effective_rank(after),
    }


@dataclass(frozen=True)
class LayerCut:
    """One matrix at one ratio: its singular values and their measures."""

    before: np.ndarray  # float64, descending
    after: np.ndarray
    measures: dict[str, float]


class LayerGrams:
    """One layer's matrices, ready to lose any rows: another ratio costs one small eigenproblem."""

    def __init__(self, block: FeedForward) -> None:
        from sparsity_core.spectrum import Gram

        self._grams = {name: Gram(weight) for name, weight in block.matrices.items()}
        self._before = {name: gram.singular_values().cpu() for name, gram in self._grams.items()}

    def cut(self, matrix: str, kept: np.ndarray) -> LayerCut:
        """The matrix with the neurons of `kept` (bool [N]) alone."""
        import torch

        before = self._before[matrix]
        after = self._grams[matrix].singular_values(torch.from_numpy(kept)).cpu()
        return LayerCut(before.numpy(), after.numpy(), measured(before, after, 1.0 - float(kept.mean())))


def layer_grams(model: Model, layer: int) -> LayerGrams:
    from sparsity_core.ffn import feed_forwards

    return LayerGrams(feed_forwards(model)[layer])


def study_uncut(model: Model, progress: Progress = silent) -> Uncut:
    """The model's own spectra, row norms and leverage scores: seconds for a small model."""
    from sparsity_core.ffn import feed_forwards
    from sparsity_core.spectrum import leverage_scores, spectra_of

    spectra = spectra_of(model, lambda share, doing: progress(0.7 * share, doing))
    blocks = feed_forwards(model)
    norms, leverage = [], []
    for block in blocks:
        progress(0.7 + 0.3 * block.layer / len(blocks), f"leverage of layer {block.layer + 1} of {len(blocks)}")
        norms.append(block.first.double().norm(dim=1).cpu().numpy())
        leverage.append(leverage_scores(block.first).cpu().numpy())
    matrices = tuple(blocks[0].matrices)
    return Uncut(
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=model.dtype_name,
        matrices=matrices,
        first="up" if blocks[0].gate is None else "gate",
        before=_stacked([[spectra[block.layer, name] for name in matrices] for block in blocks]),
        row_norm=np.stack(norms).astype(np.float32),
        leverage=np.stack(leverage).astype(np.float32),
    )


def study(
    model: Model,
    method: WeightMethod,
    *,
    dense: float | None = None,
    perplexity: bool = True,
    progress: Progress = silent,
) -> tuple[WeightStudy, Ranked | None]:
    """Cuts a model and measures every matrix's spectrum, and the perplexity of the default evaluation text.

    `dense` is the whole model's perplexity where it is known. The ranking is None where no neurons are ranked.
    """
    compressed, rankings = _compressed(model, method, lambda share, doing: progress(0.3 * share, doing))
    found = _studied(compressed, method, lambda share, doing: progress(0.3 + 0.3 * share, doing))
    if perplexity:
        if dense is None:
            dense, _ = _perplexity(model, lambda share, doing: progress(0.6 + 0.2 * share, doing))
        after, convention = _perplexity(compressed.model, lambda share, doing: progress(0.8 + 0.2 * share, doing))
        found = replace(found, perplexity=after, dense_perplexity=dense, convention=convention)
    if not rankings:
        return found, None
    importance = np.stack([r.importance.double().cpu().numpy() for r in rankings]).astype(np.float32)
    return found, Ranked(str(at_ratio(method, RATIO)), importance)


class _Remembered:
    """A neuron method that keeps the ranking it was asked for, so that a calibration runs once."""

    def __init__(self, method: NeuronMethod) -> None:
        self._method = method
        self.rankings: Sequence[Ranking] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def __str__(self) -> str:
        return str(self._method)

    def rank(self, *args: Any) -> Sequence[Ranking]:
        self.rankings = self._method.rank(*args)
        return self.rankings


def _compressed(model: Model, method: WeightMethod, progress: Progress) -> tuple[CompressedModel, Sequence[Ranking]]:
    from sparsity_core.compress import cut_neurons

    if not isinstance(method, NeuronMethod) or type(method).compress is not NeuronMethod.compress:
        return method.compress(model, progress), ()
    remembered: Any = _Remembered(method)
    return replace(cut_neurons(model, remembered, progress), method=method), remembered.rankings


def _studied(compressed: CompressedModel, method: WeightMethod, progress: Progress) -> WeightStudy:
    import torch

    from sparsity_core.ffn import feed_forwards
    from sparsity_core.spectrum import each_spectrum, spectra_of

    base = compressed.base
    before = spectra_of(base, lambda share, doing: progress(0.4 * share, doing))
    blocks = feed_forwards(compressed.model)
    n_neurons = feed_forwards(base)[0].n_neurons
    afters, measures = [], []
    mask = np.zeros((len(blocks), n_neurons), bool)
    # Below a layer's kept rows are zeros that only fill it up.
    cut = [w[: len(kept)] for block, kept in zip(blocks, compressed.kept, strict=True) for w in block.matrices.values()]
    with contextlib.closing(each_spectrum(cut)) as spectra:
        for block, kept in zip(blocks, compressed.kept, strict=True):
            progress(0.4 + 0.6 * block.layer / len(blocks), f"spectra of layer {block.layer + 1} of {len(blocks)}")
            mask[block.layer, kept] = True
            ratio = 1.0 - len(kept) / n_neurons
            row = []
            for name in block.matrices:
                after = next(spectra).cpu()
                found = measured(torch.from_numpy(before[block.layer, name]), after, ratio)
                measures.append([found[measure] for measure in MEASURES])
                row.append(after.numpy())
            afters.append(row)
    matrices = tuple(blocks[0].matrices)
    return WeightStudy(
        model=base.name,
        fingerprint=base.fingerprint,
        dtype=base.dtype_name,
        method=str(method),
        ratio=float(getattr(method, "ratio", 0.0)),
        matrices=matrices,
        n_neurons=n_neurons,
        measures=np.asarray(measures, np.float64).reshape(len(blocks), len(matrices), len(MEASURES)),
        after=_stacked(afters),
        bits=np.packbits(mask, axis=1),
        true_cut=float(compressed.true_cut),
        perplexity=math.nan,
        dense_perplexity=math.nan,
        convention="",
        seconds=compressed.seconds,
        notes=tuple(compressed.notes),
    )


def _perplexity(model: Model, progress: Progress) -> tuple[float, str]:
    from sparsity_core.calibration import evaluation_text
    from sparsity_core.evaluate import perplexity

    text = evaluation_text()
    length = min(_BLOCK, model.arch.max_positions, len(model.encode_all(text)))
    found = perplexity(
        model,
        text,
        block=length,
        most_blocks=_BLOCKS,
        progress=lambda share, doing: progress(share, f"perplexity, {doing}"),
    )
    return found.perplexity, (
        f"the last fifth of Python's reference, {found.tokens:,} tokens predicted in {found.blocks} blocks of {found.block}"
    )


# --- a policy's training ---


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
        folders = (ASSETS.parent / "policies", cache_dir() / "policies")
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
