"""A model with fewer weights, the record of what went, and its export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from sparsity_core.models import Model, Perplexity, blocks_perplexity, evaluation_text, quiet, text_digest
from sparsity_core.record import notebook_table
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.model_spectra import spectra_of
from sparsity_core.weights.spectrum import each_spectrum, ks_distance, scaled_ks_distance
from sparsity_core.work import Progress, folder_whole, new_folder, silent

if TYPE_CHECKING:
    from sparsity_core.kinds import WeightMethod

from sparsity_core.weights.card import report_card


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
    removed: int = 0  # parameters gone besides those of neurons, such as those that a low rank does without

    @cached_property
    def spectra(self) -> list[MatrixSpectrum]:
        """Of every FFN matrix, layer by layer. Computed when first asked for: seconds for a small model."""

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

    def _repr_html_(self) -> str:
        """How a notebook shows it: what was cut, and how much of the model that is."""
        kept, before = sum(map(len, self.kept)), sum(block.n_neurons for block in feed_forwards(self.base))
        facts = [
            ("model", self.base.name),
            ("method", str(self.method)),
            ("neurons kept", f"{kept:,} of {before:,} ({kept / before:.1%})"),
            ("parameters cut", f"{self.true_cut:.1%} of the whole model"),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        return notebook_table("CompressedModel", facts, self.notes)

    @property
    def true_cut(self) -> float:
        """Share of all parameters removed. Zeros that fill narrower layers count as removed, as does what a low rank spares."""
        blocks = feed_forwards(self.base)
        per_neuron = [sum(w.shape[1] for w in block.matrices.values()) for block in blocks]
        gone = sum(
            n * (block.n_neurons - len(kept)) for n, block, kept in zip(per_neuron, blocks, self.kept, strict=True)
        )
        return (gone + self.removed) / sum(p.numel() for p in self.base.hf.parameters())

    def report(
        self,
        *,
        text: str | None = None,
        block: int = 1024,
        blocks: int = 2,
        add_bos: str = "auto",
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """What was cut and what it cost, as plain JSON values.

        Perplexity before and after is measured on `text` (the default evaluation text where None): the first `blocks`
        blocks, each read by itself; a text shorter than one block is read as one.
        """

        name, text = ("default", evaluation_text()) if text is None else ("given", text)
        length = min(block, self.base.arch.max_positions, len(self.base.encode_all(text)))
        found: list[Perplexity] = []
        for model in (self.base, self.model):

            def half(share: float, doing: str, done: float = 0.5 * len(found)) -> None:
                progress(done + 0.5 * share, doing)

            found.append(
                blocks_perplexity(model, text, block=length, most_blocks=blocks, add_bos=add_bos, progress=half)
            )
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
            "calibrated": self.method.reads_text,
            "nominal_cut_of_ffn": round(self.method.ratio, 6),
            "cut_of_ffn_by_layer": [round(r, 6) for r in ratios],
            "true_cut_of_model": round(self.true_cut, 6),
            "parameters_saved": sum(p.numel() for p in self.model.hf.parameters()),
            "ks_by_layer": ks,
            "perplexity_before": round(before.perplexity, 4),
            "perplexity_after": round(after.perplexity, 4),
            "perplexity_convention": f"{name} text ({text_digest(text)}), {before.convention}",
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            **self.extra,
        }

    def save_pretrained(self, path: str | Path, *, report: dict[str, Any] | None = None) -> Path:
        """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads, with its report card, whole or not at all.

        `report` is what `self.report()` gave; it is computed where None.

        Raises OSError where the folder cannot be written, and ValueError where it exists and holds something.
        """
        path = new_folder(Path(path))
        report = self.report() if report is None else report
        with _disk_errors(path), folder_whole(path) as building, quiet():
            self.model.hf.save_pretrained(building)
            self.model.tokenizer.save_pretrained(building)
            (building / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            (building / "REPORT.md").write_text(report_card(report))
        return path


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """What safetensors raises on a full disk, as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}): free some space") from error
