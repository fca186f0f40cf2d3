"""What weights methods do to the spectra of a model, and what it costs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsity_core.kinds import WeightMethod, get, names
from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    import torch

    from sparsity_core.kinds import Ranking
    from sparsity_core.models import Model
    from sparsity_core.weights import CompressedModel, FeedForward

from sparsity_core.studies.spectra_records import (
    MEASURES,
    RATIO,
    Ranked,
    Uncut,
    WeightStudy,
    at_ratio,
    ranked_inputs,
    study_inputs,
)

SEEDS = 3  # of a random baseline
_BLOCK, _BLOCKS = 1024, 2  # of the evaluation text


def _stacked(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """float32 [L, M, n], nan beyond the end of a shorter one."""
    longest = max(len(values) for row in rows for values in row)
    out = np.full((len(rows), len(rows[0]), longest), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, values in enumerate(row):
            out[i, j, : len(values)] = values
    return out


def contenders(ratio: float) -> list[WeightMethod]:
    """Every weights method at its defaults and this ratio; random baselines with several seeds."""
    found = []
    for name in names("weights"):
        cls: type[Any] = get(name)
        method = at_ratio(cls(), ratio)
        seeded = cls.source == "baseline" and "seed" in [knob.name for knob in cls.knobs()]
        found += [replace(method, seed=seed) for seed in range(SEEDS)] if seeded else [method]  # type: ignore[call-arg]
    return found


def kept_neurons(importance: np.ndarray, method: WeightMethod) -> np.ndarray:
    """bool [N]: the neurons that a method of one ranking keeps; of equal ones the first.

    Raises ValueError where none would stay.
    """
    kept = np.zeros(len(importance), bool)
    order = np.argsort(-importance.astype(np.float64), kind="stable")
    kept[order[: method.n_kept(len(importance))]] = True
    return kept


def measured(before: torch.Tensor, after: torch.Tensor, ratio: float) -> dict[str, float]:
    """Every measure of MEASURES of one matrix, from its singular values before and after."""
    from sparsity_core.weights import effective_rank, energy, ks_distance, scaled_ks_distance, stable_rank, wasserstein

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
        from sparsity_core.weights import Gram

        self._grams = {name: Gram(weight) for name, weight in block.matrices.items()}
        self._before = {name: gram.singular_values().cpu() for name, gram in self._grams.items()}

    def cut(self, matrix: str, kept: np.ndarray) -> LayerCut:
        """The matrix with the neurons of `kept` (bool [N]) alone."""
        import torch

        before = self._before[matrix]
        after = self._grams[matrix].singular_values(torch.from_numpy(kept)).cpu()
        return LayerCut(before.numpy(), after.numpy(), measured(before, after, 1.0 - float(kept.mean())))


def layer_grams(model: Model, layer: int) -> LayerGrams:
    from sparsity_core.weights import feed_forwards

    return LayerGrams(feed_forwards(model)[layer])


def study_uncut(model: Model, progress: Progress = silent) -> Uncut:
    """The model's own spectra, row norms and leverage scores: seconds for a small model."""
    from sparsity_core.weights import feed_forwards, leverage_scores, spectra_of

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
    found = study_of(compressed, lambda share, doing: progress(0.3 + 0.3 * share, doing))
    if perplexity:
        if dense is None:
            dense, _ = _perplexity(model, lambda share, doing: progress(0.6 + 0.2 * share, doing))
        after, convention = _perplexity(compressed.model, lambda share, doing: progress(0.8 + 0.2 * share, doing))
        found = replace(found, perplexity=after, dense_perplexity=dense, convention=convention)
    if not rankings:
        return found, None
    importance = np.stack([r.importance.double().cpu().numpy() for r in rankings]).astype(np.float32)
    return found, Ranked(str(at_ratio(method, RATIO)), importance, ranked_inputs(method))


def _compressed(model: Model, method: WeightMethod, progress: Progress) -> tuple[CompressedModel, Sequence[Ranking]]:
    """The cut model, and the rankings that the method made for it: a calibration is run once."""
    if not isinstance(method, NeuronMethod):
        return method.compress(model, progress), ()
    rankings: list[Ranking] = []

    def rank(model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        rankings.extend(method.rank(model, blocks, progress))
        return rankings

    return method.compress_by(model, rank, progress), rankings


def study_of(compressed: CompressedModel, progress: Progress = silent) -> WeightStudy:
    """Every matrix's spectrum in a model that has been cut already; its perplexity is not measured."""
    import torch

    from sparsity_core.weights import each_spectrum, feed_forwards, spectra_of

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
        method=str(compressed.method),
        ratio=compressed.method.ratio,
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
        inputs=study_inputs(compressed.method),
    )


def _perplexity(model: Model, progress: Progress) -> tuple[float, str]:
    from sparsity_core.models import blocks_perplexity, evaluation_text

    text = evaluation_text()
    length = min(_BLOCK, model.arch.max_positions, len(model.encode_all(text)))
    found = blocks_perplexity(
        model,
        text,
        block=length,
        most_blocks=_BLOCKS,
        progress=lambda share, doing: progress(share, f"perplexity, {doing}"),
    )
    return found.perplexity, (
        f"the last fifth of Python's reference, {found.tokens:,} tokens predicted in {found.blocks} blocks of {found.block}"
    )
