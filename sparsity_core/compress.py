"""Cutting weights for good: which neurons stay, what that does to the spectra, and a checkpoint that others load."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sparsity_core.ffn import FeedForward, NeuronCut, feed_forwards, without_neurons
from sparsity_core.method import Progress, silent
from sparsity_core.models import Model, quiet, wrap
from sparsity_core.spectrum import Gram, ks_distance, scaled_ks_distance

if TYPE_CHECKING:
    from sparsity_core.evaluate import Perplexity
    from sparsity_core.method import NeuronMethod, WeightMethod

_GRID = 12  # ratios at which a layer's KS distance is known before equal ones are looked for


class Ranking(NamedTuple):
    """A layer's neurons by importance, and their mean activation where what is lost can be put into a bias."""

    importance: torch.Tensor  # [n]
    mean: torch.Tensor | None = None  # [n]


@dataclass(frozen=True)
class MatrixSpectrum:
    """Singular values of one matrix before and after the cut, float64, descending."""

    layer: int
    matrix: str  # gate, up or down
    before: np.ndarray
    after: np.ndarray

    @property
    def ks(self) -> float:
        return ks_distance(torch.from_numpy(self.before), torch.from_numpy(self.after)).statistic

    @property
    def ks_at(self) -> float:
        """The singular value at which the KS distance is reached."""
        return ks_distance(torch.from_numpy(self.before), torch.from_numpy(self.after)).location

    def scaled_ks(self, ratio: float) -> float:
        return scaled_ks_distance(torch.from_numpy(self.before), torch.from_numpy(self.after), ratio).statistic


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A model with fewer weights, and the record of what went. The model that it was made from is unchanged."""

    model: Model
    base: Model
    method: WeightMethod
    kept: tuple[np.ndarray, ...]  # int64 [n_kept] of each layer, ascending; all of them where no neuron was cut
    seconds: float
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)  # more for the report card, plain JSON values
    removed: int = 0  # parameters gone besides those of neurons, those that a low rank does without among them

    @cached_property
    def spectra(self) -> list[MatrixSpectrum]:
        """Of every FFN matrix, layer by layer. Computed when first asked for: seconds for a small model."""
        from sparsity_core.spectrum import each_spectrum, spectra_of

        before = spectra_of(self.base)
        # Below a layer's kept rows are zeros that only fill it up.
        cut = {
            (block.layer, name): weight[: len(self.kept[block.layer])]
            for block in feed_forwards(self.model)
            for name, weight in block.matrices.items()
        }
        return [
            MatrixSpectrum(*named, before[named], after.cpu().numpy())
            for named, after in zip(cut, each_spectrum(list(cut.values())), strict=True)
        ]

    @property
    def true_cut(self) -> float:
        """Share of all parameters removed, zeros that fill narrower layers not counted as kept, nor what a rank spares."""
        blocks = feed_forwards(self.base)
        per_neuron = [sum(w.shape[1] for w in block.matrices.values()) for block in blocks]
        gone = sum(
            n * (block.n_neurons - len(kept)) for n, block, kept in zip(per_neuron, blocks, self.kept, strict=True)
        )
        return (gone + self.removed) / sum(p.numel() for p in self.base.hf.parameters())

    def report(
        self, *, text: str | None = None, block: int = 1024, blocks: int = 2, progress: Progress = silent
    ) -> dict[str, Any]:
        """What was cut and what it cost, as plain JSON values.

        Perplexity before and after is measured on `text` (the default evaluation text where None): the first `blocks`
        blocks, each read by itself; a text shorter than one block is read as one.
        """
        from sparsity_core.calibration import evaluation_text
        from sparsity_core.evaluate import perplexity

        name, text = ("default", evaluation_text()) if text is None else ("given", text)
        length = min(block, self.base.arch.max_positions, len(self.base.encode_all(text)))
        found: list[Perplexity] = []
        for model in (self.base, self.model):

            def half(share: float, doing: str, done: float = 0.5 * len(found)) -> None:
                progress(done + 0.5 * share, doing)

            found.append(perplexity(model, text, block=length, most_blocks=blocks, progress=half))
        before, after = found
        ratios = [1 - len(kept) / b.n_neurons for kept, b in zip(self.kept, feed_forwards(self.base), strict=True)]
        ks: dict[str, list[float]] = {}
        for item in self.spectra:
            ks.setdefault(item.matrix, []).append(round(item.ks, 6))
        return {
            "model": self.base.name,
            "weights": self.base.fingerprint,
            "method": str(self.method),
            "source": self.method.source,
            "calibrated": bool(getattr(self.method, "calibrated", False)),
            "nominal_cut_of_ffn": round(float(getattr(self.method, "ratio", 0.0)), 6),
            "cut_of_ffn_by_layer": [round(r, 6) for r in ratios],
            "true_cut_of_model": round(self.true_cut, 6),
            "parameters_saved": sum(p.numel() for p in self.model.hf.parameters()),
            "ks_by_layer": ks,
            "perplexity_before": round(before.perplexity, 4),
            "perplexity_after": round(after.perplexity, 4),
            "perplexity_convention": f"{name} text, {before.tokens:,} tokens predicted in {before.blocks} blocks of "
            f"{before.block}, no BOS added",
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            **self.extra,
        }

    def save_pretrained(self, path: str | Path, *, report: dict[str, Any] | None = None) -> Path:
        """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads, with its report card, whole or not at all.

        `report` is what `self.report()` gave; it is computed where None.

        Raises OSError where the folder cannot be written, and ValueError where it exists and holds something.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} exists already: choose a folder that is new or empty")
        report = self.report() if report is None else report
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            with quiet():
                self.model.hf.save_pretrained(building)
                self.model.tokenizer.save_pretrained(building)
            (building / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            (building / "REPORT.md").write_text(report_card(report))
            building.chmod(0o755)
            if path.exists():
                path.rmdir()
            os.replace(building, path)
        except BaseException as error:
            if "SafetensorError" in type(error).__name__:  # what safetensors raises on a full disk
                raise OSError(f"{path} could not be written ({error}): free some space") from error
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return path


def cut_neurons(model: Model, method: NeuronMethod, progress: Progress) -> CompressedModel:
    """The model without the neurons that a method ranks lowest, a layer at a time."""
    began = time.perf_counter()
    with torch.no_grad():  # inference mode's tensors could never take part in a backward pass again
        blocks = feed_forwards(model)
        if method.ratio == 0.0:
            kept = [torch.arange(block.n_neurons) for block in blocks]
            rankings: Sequence[Ranking] = []
        else:
            rankings = method.rank(model, blocks, lambda share, doing: progress(0.8 * share, doing))
            counts = _counts(blocks, rankings, method, lambda s, doing: progress(0.8 + 0.2 * s, doing))
            kept = [top(r.importance, n) for r, n in zip(rankings, counts, strict=True)]
        cuts = [NeuronCut(rows.to(model.device)) for rows in kept]
        if rankings and rankings[0].mean is not None:
            cuts = [_compensated(block, cut.kept, r.mean) for block, cut, r in zip(blocks, cuts, rankings, strict=True)]
        hf, notes = without_neurons(model, cuts)
    compressed = wrap(hf, model.tokenizer, f"{model.name} {method}")
    arrays = tuple(rows.cpu().numpy() for rows in kept)
    progress(1.0, "done")
    return CompressedModel(compressed, model, method, arrays, time.perf_counter() - began, tuple(notes))


def top(importance: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` most important neurons, ascending; of equal ones the first."""
    if bool(torch.isnan(importance).any()):
        raise ValueError("a neuron's importance is not a number: the weights or the calibration are damaged")
    return importance.double().cpu().sort(descending=True, stable=True).indices[:count].sort().values


def _compensated(block: FeedForward, kept: torch.Tensor, mean: torch.Tensor | None) -> NeuronCut:
    if mean is None:
        return NeuronCut(kept)
    lost = mean.to(block.down).clone()
    lost[kept] = 0.0
    return NeuronCut(kept, block.down @ lost)


def kept_count(n: int, ratio: float, multiple: int = 1, *, what: str = "neurons") -> int:
    """How many of n stay. Raises ValueError where none would."""
    count = round(n * (1.0 - ratio) / multiple) * multiple
    if count < 1:
        raise ValueError(f"a ratio of {ratio:g} leaves none of {n:,} {what}: choose a smaller one")
    return min(n, count)


def _counts(
    blocks: Sequence[FeedForward], rankings: Sequence[Ranking], method: NeuronMethod, progress: Progress
) -> list[int]:
    ratios = [method.ratio] * len(blocks)
    if method.allocation == "equal_ks" and len(blocks) > 1:
        ratios = _equal_ks(blocks, rankings, method.ratio, progress)
    return [kept_count(b.n_neurons, r, method.multiple) for b, r in zip(blocks, ratios, strict=True)]


def _equal_ks(
    blocks: Sequence[FeedForward], rankings: Sequence[Ranking], ratio: float, progress: Progress
) -> list[float]:
    """Ratios of mean `ratio` under which every layer's first matrix moves by the same KS distance."""
    grid = np.linspace(0.0, min(0.95, 2.0 * ratio), _GRID)
    curves = []
    for block, ranking in zip(blocks, rankings, strict=True):
        progress(block.layer / len(blocks), f"layer {block.layer + 1}: KS distance by ratio")
        gram = Gram(block.first)
        before = gram.singular_values().cpu()
        distances = [0.0]
        for r in grid[1:]:
            kept = torch.zeros(block.n_neurons, dtype=torch.bool)
            kept[top(ranking.importance, kept_count(block.n_neurons, float(r)))] = True
            distances.append(ks_distance(before, gram.singular_values(kept).cpu()).statistic)
        curves.append(np.maximum.accumulate(distances))
    low, high = 0.0, max(float(curve[-1]) for curve in curves)
    for _ in range(50):
        middle = (low + high) / 2
        found = [float(np.interp(middle, curve + 1e-9 * grid, grid)) for curve in curves]
        low, high = (middle, high) if np.mean(found) < ratio else (low, middle)
    return found


def report_card(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['model']}, {report['method']}", ""]
    lines += [
        f"Made by SparseLens from weights {report['weights']}. Method: {report['source']}.",
        "",
        "| | |",
        "|---|---|",
    ]
    rows = {
        "FFN neurons cut, as asked": f"{report['nominal_cut_of_ffn']:.1%}",
        "parameters cut, of the whole model": f"{report['true_cut_of_model']:.1%}",
        "perplexity before": f"{report['perplexity_before']:.3f}",
        "perplexity after": f"{report['perplexity_after']:.3f}",
        "convention": report["perplexity_convention"],
        "calibration text": "yes" if report["calibrated"] else "no",
        "seconds": report["seconds"],
    }
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    names = list(report["ks_by_layer"])
    lines += [
        "",
        "KS distance of the singular values, by layer:",
        "",
        f"| layer | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for layer, values in enumerate(zip(*report["ks_by_layer"].values(), strict=True)):
        lines.append(f"| {layer} | {' | '.join(f'{v:.4f}' for v in values)} |")
    return "\n".join([*lines, "", *report["notes"], ""])
