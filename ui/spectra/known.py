"""What is known of a model's spectra, on disk and in this process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import streamlit as st

from sparsity_core import studies
from sparsity_core.kinds import Pipeline, WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.studies import Ranked, Uncut, WeightStudy
from sparsity_core.work import Job


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Of this process: fingerprints of models that were loaded, records that no disk would take, and layers made ready."""
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
    return _record("uncut", *who, "")


def study_of(who: tuple[str, str], method: WeightMethod) -> WeightStudy | None:
    return _record("study", *who, str(method))


def ranked_of(who: tuple[str, str], method: WeightMethod) -> Ranked | None:
    """How the method ranks the neurons, where one ranking serves every ratio."""
    if not studies.is_interactive(method):
        return None
    return _record("ranked", *who, str(studies.at_ratio(method, studies.RATIO)))


def _record(kind: str, fingerprint: str, dtype: str, spelled: str) -> Any:
    held = known_values()["records"].get((kind, fingerprint, dtype, spelled))
    if held is not None:
        return held
    try:
        return _stored(kind, fingerprint, dtype, spelled)
    except LookupError:
        return None


@st.cache_resource(show_spinner=False, max_entries=128)
def _stored(kind: str, fingerprint: str, dtype: str, spelled: str) -> Any:
    method: Any = Pipeline.parse(f"weights={spelled}").weights if spelled else None
    found: Any
    if kind == "uncut":
        found = studies.find_uncut(fingerprint, dtype)
    elif kind == "study":
        found = studies.find_study(fingerprint, dtype, method)
    else:
        found = studies.find_ranked(fingerprint, dtype, method)
    if found is None:
        raise LookupError(spelled)
    return found


def keep(record: Any, spelled: str, who: tuple[str, str], known: dict[str, Any]) -> str | None:
    """Keeps a record on disk, or in this process where no disk takes it, which the sentence that it returns then says."""
    problem = studies.keep_record(record, *who)
    if problem is not None:
        kind = {Uncut: "uncut", Ranked: "ranked", WeightStudy: "study"}[type(record)]
        known["records"][(kind, *who, spelled)] = record
        while len(known["records"]) > 64:
            known["records"].popitem(last=False)
    return problem


def tell_problems(jobs: dict[str, Job]) -> None:
    """The sentence of a result that no disk would take. What was read before may be known better by now."""
    _stored.clear()
    for job in jobs.values():
        if isinstance(job.result, str):
            st.session_state["warning"] = job.result


def tell_missing(study: WeightStudy | None) -> str:
    """Why the chosen matrix's spectrum cannot be drawn, and what can be."""
    if study is None:
        return "What this method does to this model has not been computed here yet."
    return "The distances below are known, and the singular values behind them were not kept here: compute them to draw them."
