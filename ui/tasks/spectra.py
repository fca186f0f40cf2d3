"""The measuring of spectra: a whole model, a method, or one layer for the slider."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsity_core import studies
from sparsity_core.kinds import Pipeline, WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.studies import LayerCut, LayerGrams, Ranked, Uncut, WeightStudy
from sparsity_core.work import Progress

LAYERS = 4  # ready for the slider at once: a few matrices of float64 each
_ready: OrderedDict[str, LayerGrams] = OrderedDict()


@dataclass(frozen=True)
class Measured:
    """What came of measuring a model."""

    who: tuple[str, str]  # the model's fingerprint and number format
    problem: str | None = None  # why a record could not be kept on disk
    unkept: tuple[Uncut | Ranked | WeightStudy, ...] = ()

    def and_kept(self, record: Uncut | Ranked | WeightStudy) -> Measured:
        """With one more record, which is kept on disk where that is possible."""
        problem = studies.keep_record(record, *self.who)
        return self if problem is None else Measured(self.who, problem, (*self.unkept, record))


def uncut(spec: RunSpec, progress: Progress) -> Measured:
    model, found = _loaded(spec, progress)
    if studies.find_uncut(*found.who) is not None:
        return found
    return found.and_kept(studies.study_uncut(model, progress))


def study(spec: RunSpec, spelled: str, dense: float | None, progress: Progress) -> Measured:
    """One method's study, and its ranking where it has one. `dense` is the whole model's perplexity, where it is known."""
    method = weight_method(spelled)
    model, found = _loaded(spec, progress)
    from sparsity_core.inference import release_pruned

    release_pruned()  # the study makes a copy of its own
    made, ranked = studies.study(
        model, method, dense=dense, progress=lambda share, doing: progress(share, f"{method.name}: {doing}")
    )
    return (found if ranked is None else found.and_kept(ranked)).and_kept(made)


def layer(spec: RunSpec, layer: int, progress: Progress) -> Measured:
    """Makes a layer's Gram matrices ready for `cut`."""
    model, found = _loaded(spec, progress)
    progress(0.5, f"layer {layer}: Gram matrices")
    _ready[name_of(found.who, layer)] = studies.layer_grams(model, layer)
    while len(_ready) > LAYERS:
        _ready.popitem(last=False)
    return found


def cut(name: str, matrix: str, kept: np.ndarray) -> LayerCut | None:
    """A matrix of a layer with the neurons of `kept` (bool [N]) alone; None where the layer is not ready."""
    grams = _ready.get(name)
    return None if grams is None else grams.cut(matrix, kept)


def weight_method(spelled: str) -> WeightMethod:
    """The method of a spelling: an object of a plug-in's class would not be known in another process."""
    method = Pipeline.parse(f"weights={spelled}").weights
    assert method is not None
    return method


def name_of(who: tuple[str, str], layer: int) -> str:
    return f"{' '.join(who)} {layer}"


def _loaded(spec: RunSpec, progress: Progress) -> tuple[Any, Measured]:
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return model, Measured((model.fingerprint, model.dtype_name))
