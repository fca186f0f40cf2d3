"""The work that measures spectra: a whole model, a method, or one layer for the slider."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from sparsity_core import studies
from sparsity_core.kinds import WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.studies import LayerCut, LayerGrams, Ranked
from ui import work
from ui.address import places_of
from ui.session import EXAMPLE
from ui.spectra.choice import Choice
from ui.spectra.known import asked, keep, known_values, place, study_of
from ui.trust import trust

_LAYERS = 4  # ready for the slider at once: a few matrices of float64 each


def compute_uncut(spec: RunSpec) -> None:
    trust(places_of(spec.model, "dense"))
    work.submit("spectra", {f"uncut {place(spec)}": partial(_uncut_work, spec, known_values())})


def compute_studies(purpose: str, choice: Choice, wanted: list[WeightMethod]) -> None:
    """Queues the studies of some methods; each is kept as soon as it is done."""
    known = known_values()
    dense = next((s.dense_perplexity for m in wanted_and_known(choice) if (s := study_of(choice.who, m))), None)
    pieces: dict[str, Callable[[Callable[[float, str], None]], Any]] = {}
    for method in wanted:
        key = f"study {place(choice.spec)} {asked(method, studies.study_inputs(method))}"
        pieces[key] = partial(_study_work, choice.spec, method, dense, known)
    work.submit(purpose, pieces)


def wanted_and_known(choice: Choice) -> list[WeightMethod]:
    return [choice.method, *studies.contenders(choice.ratio), *studies.contenders(studies.RATIO)]


def _load(spec: RunSpec, known: dict[str, Any], progress: Callable[[float, str], None]) -> Any:
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    known["fingerprints"][place(spec)] = (model.fingerprint, model.dtype_name)
    return model


def _uncut_work(spec: RunSpec, known: dict[str, Any], progress: Callable[[float, str], None]) -> str | None:
    model = _load(spec, known, progress)
    found = (model.fingerprint, model.dtype_name)
    if studies.find_uncut(*found) is not None:
        return None
    return keep(studies.study_uncut(model, progress), found, known)


def _study_work(
    spec: RunSpec,
    method: WeightMethod,
    dense: float | None,
    known: dict[str, Any],
    progress: Callable[[float, str], None],
) -> str | None:
    model = _load(spec, known, progress)
    found = (model.fingerprint, model.dtype_name)
    from sparsity_core.inference import release_pruned

    release_pruned()  # the study makes a copy of its own
    study, ranked = studies.study(
        model, method, dense=dense, progress=lambda share, doing: progress(share, f"{method.name}: {doing}")
    )
    problem = None if ranked is None else keep(ranked, found, known)
    return keep(study, found, known) or problem


def _layer_work(spec: RunSpec, layer: int, known: dict[str, Any], progress: Callable[[float, str], None]) -> None:
    model = _load(spec, known, progress)
    progress(0.5, f"layer {layer}: Gram matrices")
    ready = known["layers"]
    ready[f"{model.fingerprint} {model.dtype_name} {layer}"] = studies.layer_grams(model, layer)
    while len(ready) > _LAYERS:
        ready.popitem(last=False)


def make_ready(choice: Choice) -> LayerGrams | None:
    """The layer's Gram matrices, for the slider; begun in the background for the model that is loaded anyway."""
    key = f"{' '.join(choice.who)} {choice.layer}"
    found = known_values()["layers"].get(key)
    if found is None and choice.spec.model == EXAMPLE.model and "layer" not in st.session_state.get("pending", {}):
        job = work.queue().find(_layer_key(choice))
        if job is None or job.status == "done":  # done, and pushed out by other layers since
            work.queue().submit(*_layer_job(choice), "process")
    return found


def begin_layer(choice: Choice) -> None:
    """Begins to make the layer ready, for a figure that cannot be drawn before."""
    if not work.pending("layer") and not st.session_state.get("failures", {}).get("layer"):
        work.submit("layer", dict([_layer_job(choice)]))


def _layer_key(choice: Choice) -> str:
    return f"layer {place(choice.spec)} {choice.layer}"


def _layer_job(choice: Choice) -> tuple[str, Callable[[Callable[[float, str], None]], None]]:
    return _layer_key(choice), partial(_layer_work, choice.spec, choice.layer, known_values())


def live_cut(choice: Choice, ranked: Ranked, grams: LayerGrams) -> tuple[LayerCut, np.ndarray]:
    """The chosen matrix at the chosen ratio, and which neurons stay."""
    kept = studies.kept_neurons(ranked.importance[choice.layer], choice.method)
    key = f"{choice.who} {choice.layer} {choice.matrix} {asked(choice.method, ranked.inputs)}"
    return _live(key, choice.matrix, grams, kept), kept


@st.cache_resource(show_spinner=False, max_entries=256)
def _live(key: str, matrix: str, _grams: LayerGrams, _kept: np.ndarray) -> LayerCut:
    return _grams.cut(matrix, _kept)
