"""What is known of a model's spectra, on disk and in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import streamlit as st

from sparsity_core import studies
from sparsity_core.kinds import WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.studies import Ranked, Uncut, WeightStudy
from sparsity_core.work import Job
from ui.tasks.spectra import Measured


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Of this process: fingerprints of models that were loaded, records that no disk would take, and, of layers that were
    made ready, by which engine.
    """
    return {"fingerprints": {}, "records": OrderedDict(), "layers": OrderedDict()}


def identity(spec: RunSpec) -> tuple[str, str] | None:
    """(fingerprint, dtype) of a spec's model; None until it has been loaded once, unless it ships with the library."""
    found = known_values()["fingerprints"].get(place(spec))
    if found is None:
        try:
            found = _bundled(spec.model, spec.dtype)
        except LookupError:
            return None
    return found


def place(spec: RunSpec) -> str:
    return f"{spec.model}\n{spec.device}\n{spec.dtype}"


@st.cache_resource(show_spinner=False, max_entries=8)
def _bundled(model: str, dtype: str) -> tuple[str, str]:
    found = studies.bundled_uncut(model, dtype)
    if found is None:
        raise LookupError(model)  # an exception is not cached, so a later one is found
    return found.fingerprint, found.dtype


def uncut_of(who: tuple[str, str]) -> Uncut | None:
    return _record("uncut", *who)


def study_of(who: tuple[str, str], method: WeightMethod) -> WeightStudy | None:
    return _record("study", *who, method, studies.study_inputs(method))


def ranked_of(who: tuple[str, str], method: WeightMethod) -> Ranked | None:
    """How the method ranks the neurons, where one ranking serves every ratio."""
    if not method.one_ranking:
        return None
    method = studies.at_ratio(method, studies.RATIO)
    return _record("ranked", *who, method, studies.ranked_inputs(method))


def asked(method: WeightMethod | str | None, inputs: Mapping[str, str]) -> str:
    """Names what a record is of: the method, and the content of what it was made of."""
    return "" if method is None else f"{method} {sorted(inputs.items())}"


def _record(
    kind: str,
    fingerprint: str,
    dtype: str,
    method: WeightMethod | None = None,
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    name = asked(method, inputs)
    held = known_values()["records"].get((kind, fingerprint, dtype, name))
    if held is not None:
        return held
    try:
        return _stored(kind, fingerprint, dtype, name, method)
    except LookupError:
        return None


@st.cache_resource(show_spinner=False, max_entries=128)
def _stored(kind: str, fingerprint: str, dtype: str, name: str, _method: Any) -> Any:
    found: Any
    if kind == "uncut":
        found = studies.find_uncut(fingerprint, dtype)
    elif kind == "study":
        found = studies.find_study(fingerprint, dtype, _method)
    else:
        found = studies.find_ranked(fingerprint, dtype, _method)
    if found is None:
        raise LookupError(name)
    return found


def keep(known: dict[str, Any], spec: RunSpec, found: Measured) -> None:
    """Notes what a job found in `known`, and holds those of its records in this process that no disk would take."""
    known["fingerprints"][place(spec)] = found.who
    for record in found.unkept:
        kind = {Uncut: "uncut", Ranked: "ranked", WeightStudy: "study"}[type(record)]
        name = "" if isinstance(record, Uncut) else asked(record.method, record.inputs)
        known["records"][(kind, *found.who, name)] = record
        while len(known["records"]) > 64:
            known["records"].popitem(last=False)


def tell_problems(jobs: dict[str, Job]) -> None:
    """The sentence of a result that no disk would take. What was read before may be known better by now."""
    _stored.clear()
    for job in jobs.values():
        if job.result.problem:
            st.session_state["warning"] = job.result.problem


def tell_missing(study: WeightStudy | None) -> str:
    """Why the chosen matrix's spectrum cannot be drawn, and what can be."""
    if study is None:
        return "What this method does to this model has not been computed here yet."
    return "The distances below are known, and the singular values behind them were not kept here: compute them to draw them."
