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
from sparsity_core.studies import LayerCut, Ranked
from sparsity_core.work import Progress
from ui import work
from ui.address import places_of
from ui.session import EXAMPLE
from ui.spectra.choice import Choice
from ui.spectra.known import asked, keep, known_values, place, study_of
from ui.tasks import spectra
from ui.tasks.spectra import Measured
from ui.trust import trust

_ANSWER = 30.0  # s that one cut may take beside a running job


def compute_uncut(spec: RunSpec) -> None:
    trust(places_of(spec.model, "dense"))
    work.submit("spectra", {f"uncut {place(spec)}": partial(spectra.uncut, spec)}, partial(_keep, known_values(), spec))


def compute_studies(purpose: str, choice: Choice, wanted: list[WeightMethod]) -> None:
    """Queues the studies of some methods; each is kept as soon as it is done."""
    dense = next((s.dense_perplexity for m in wanted_and_known(choice) if (s := study_of(choice.who, m))), None)
    pieces: dict[str, Callable[[Progress], Measured]] = {}
    for method in wanted:
        key = f"study {place(choice.spec)} {asked(method, studies.study_inputs(method))}"
        pieces[key] = partial(spectra.study, choice.spec, str(method), dense)
    work.submit(purpose, pieces, partial(_keep, known_values(), choice.spec))


def wanted_and_known(choice: Choice) -> list[WeightMethod]:
    return [choice.method, *studies.contenders(choice.ratio), *studies.contenders(studies.RATIO)]


def _keep(known: dict[str, Any], spec: RunSpec, key: str, found: Measured) -> None:
    keep(known, spec, found)


def _keep_layer(known: dict[str, Any], engine: Callable[[], int], choice: Choice, found: Measured) -> None:
    keep(known, choice.spec, found)
    ready = known["layers"]
    ready[spectra.name_of(found.who, choice.layer)] = engine()
    while len(ready) > spectra.LAYERS:  # as many as the engine holds
        ready.popitem(last=False)


def prepare(choice: Choice) -> None:
    """Begins to make the layer ready for the slider in the background, for the model that is loaded anyway."""
    if choice.spec.model == EXAMPLE.model and not _is_ready(choice) and not work.pending("layer"):
        job = work.queue().find(_layer_key(choice))
        if job is None or job.status == "done":  # done, and pushed out by other layers since
            work.queue().submit(*_layer_job(choice), "process", keep=_keeper(choice))


def live_cut(choice: Choice, ranked: Ranked) -> tuple[LayerCut, np.ndarray] | None:
    """The chosen matrix at the chosen ratio, and which neurons stay. None where the engine has not made the layer ready."""
    kept = studies.kept_neurons(ranked.importance[choice.layer], choice.method)
    key = f"{choice.who} {choice.layer} {choice.matrix} {asked(choice.method, ranked.inputs)}"
    try:
        return _live(key, choice, kept), kept
    except LookupError:
        return None


@st.cache_resource(show_spinner=False, max_entries=256)
def _live(key: str, _choice: Choice, _kept: np.ndarray) -> LayerCut:
    name = spectra.name_of(_choice.who, _choice.layer)
    found = work.queue().ask(partial(spectra.cut, name, _choice.matrix, _kept), _ANSWER) if _is_ready(_choice) else None
    if found is None:
        known_values()["layers"].pop(name, None)
        raise LookupError(name)  # an exception is not cached
    return found


def _is_ready(choice: Choice) -> bool:
    """Whether the engine that runs now has made the layer ready."""
    return known_values()["layers"].get(spectra.name_of(choice.who, choice.layer)) == work.queue().engines


def begin_layer(choice: Choice) -> None:
    """Begins to make the layer ready, for a figure that cannot be drawn before."""
    if not work.pending("layer") and not st.session_state.get("failures", {}).get("layer"):
        keep = _keeper(choice)
        work.submit("layer", dict([_layer_job(choice)]), lambda key, found: keep(found))


def _layer_key(choice: Choice) -> str:
    return f"layer {place(choice.spec)} {choice.layer}"


def _layer_job(choice: Choice) -> tuple[str, Callable[[Progress], Measured]]:
    return _layer_key(choice), partial(spectra.layer, choice.spec, choice.layer)


def _keeper(choice: Choice) -> Callable[[Measured], None]:
    queue = work.queue()
    return partial(_keep_layer, known_values(), lambda: queue.engines, choice)
