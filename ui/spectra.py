"""The Spectra page's choices, the studies that it reads, and the work that makes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any

import numpy as np
import streamlit as st

from sparsity_core import methods, studies
from sparsity_core.kinds import Pipeline, WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.studies import LayerCut, LayerGrams, Ranked, Uncut, WeightStudy
from sparsity_core.work import Job, explain
from ui import work
from ui.figure import Origin
from ui.knobs import knob_widgets
from ui.literal import literal
from ui.session import EXAMPLE, specs

RATIOS = tuple(round(0.05 * i, 2) for i in range(16))  # 0 to 0.75, as the slider steps
_LETTER = "S"  # of the page's own method, beside A and B
_HELD = ("S_", "spectra_", "channels_", "gate_")  # widgets whose choices outlive a visit to another page
_VIEW = ("layer", "head", "token", "step")
_LAYERS = 4  # ready for the slider at once: a few matrices of float64 each


@dataclass(frozen=True)
class Choice:
    """What the page looks at."""

    spec: RunSpec
    uncut: Uncut
    method: WeightMethod
    layer: int
    matrix: str

    @property
    def who(self) -> tuple[str, str]:
        return self.uncut.fingerprint, self.uncut.dtype

    @property
    def ratio(self) -> float:
        return float(getattr(self.method, "ratio", 0.0))


# --- choices ---


def example_method() -> WeightMethod:
    """What the page opens on: the trained policy where one ships, else the best ranking that needs none."""
    trained = any((studies.SHIPPED_SPECTRA.parent / "policies").glob("*.json"))
    name = "prunenet" if trained and "prunenet" in methods.names("weights") else "leverage"
    return studies.at_ratio(methods.get(name)(), studies.RATIO)  # type: ignore[arg-type]


def hold_choices(on_page: bool) -> None:
    """Keeps what widgets of pages that are not drawn held: Streamlit forgets them at the end of a run."""
    if not on_page:
        st.session_state["spectra away"] = True
    for key in list(st.session_state):
        if str(key).startswith(_HELD) or (on_page and key in _VIEW):
            st.session_state[key] = st.session_state[key]


def spectra_link() -> dict[str, str]:
    """The page's part of the address."""
    choice: Choice | None = st.session_state.get("spectra choice")
    if choice is None:  # the model is not measured yet, and what the link asks for is chosen afterwards
        return {name: st.query_params[name] for name in ("weights", "matrix", "layer") if name in st.query_params}
    return {"weights": str(choice.method), "matrix": choice.matrix, "layer": str(choice.layer)}


def choose(spec: RunSpec, uncut: Uncut) -> Choice | None:
    """The row of controls. Returns None, and says why, where the knobs do not fit together."""
    _fill_in(uncut)
    picked, ratio, layer, matrix = st.columns([2.2, 3.4, 1.4, 2.2], vertical_alignment="bottom")
    name = picked.selectbox(
        "Method", methods.names("weights"), key="S_method", help="what decides which weights are cut"
    )
    cls = methods.get(name)
    layer.number_input("Layer", 0, uncut.n_layers - 1, key="S_layer", help="or click a cell of the map below")
    with matrix:
        st.segmented_control("Matrix", list(uncut.matrices), key="S_matrix", required=True)
    knobs = {knob.name: knob for knob in cls.knobs()}
    values: dict[str, Any] = {}
    if "ratio" in knobs:
        values["ratio"] = ratio.select_slider(
            "Ratio", _ratios(), key="S_ratio", format_func=lambda r: f"{r:.0%}", help=knobs["ratio"].metadata["help"]
        )
    others = [knob for knob in cls.knobs() if knob.name != "ratio"]
    linked: WeightMethod = st.session_state["spectra linked"]
    if others:
        with st.expander("More settings"):
            for columns in _rows(len(others)):
                for column, knob in zip(columns, others[: len(columns)], strict=False):
                    with column:
                        values |= knob_widgets(_LETTER, cls, [knob], linked)
                others = others[len(columns) :]
    try:
        method: Any = cls(**values)
    except ValueError as error:
        st.warning(literal(explain(error)), icon=":material/warning:")
        return None
    choice = Choice(spec, uncut, method, int(st.session_state.S_layer), st.session_state.S_matrix)
    st.session_state["spectra choice"] = choice
    st.session_state["layer"] = choice.layer  # the layer that the other pages look at
    return choice


def _rows(n: int) -> list[Any]:
    return [st.columns(4) for _ in range(-(-n // 4))]


def _ratios() -> list[float]:
    """The slider's steps, and the ratio of a link between them."""
    return sorted({*RATIOS, st.session_state.S_ratio})


def _fill_in(uncut: Uncut) -> None:
    """What is not chosen yet, from the address or by default; and what another model cannot have, brought inside."""
    if "S_method" not in st.session_state:
        method = _linked()
        st.session_state["spectra linked"] = method
        st.session_state.S_method = method.name
        st.session_state.S_ratio = float(getattr(method, "ratio", studies.RATIO))
        st.session_state.S_layer = _whole(
            st.query_params.get("layer"), st.session_state.get("layer", uncut.n_layers // 2)
        )
        st.session_state.S_matrix = st.query_params.get("matrix", uncut.first)
    elif "layer" in st.session_state and st.session_state.get("spectra away"):
        st.session_state.S_layer = int(st.session_state.layer)
    st.session_state["spectra away"] = False
    inside = min(max(0, st.session_state.S_layer), uncut.n_layers - 1)
    if inside != st.session_state.S_layer:
        st.session_state.S_layer = inside
    if st.session_state.S_matrix not in uncut.matrices:
        st.session_state.S_matrix = uncut.first
    if not 0.0 <= st.session_state.S_ratio < 1.0:
        st.session_state.S_ratio = studies.RATIO


def _linked() -> WeightMethod:
    given = st.query_params.get("weights")
    if given is None:
        return example_method()
    try:
        method = Pipeline.parse(f"weights={given}").weights
        if method is None:
            raise ValueError("it names no method")
        return method
    except ValueError as error:
        st.warning(literal(f"The link's method could not be read. {explain(error)} The example is shown instead."))
        return example_method()


def _whole(given: str | None, otherwise: int) -> int:
    return (
        int(given) if given is not None and given.isascii() and given.isdigit() and len(given) < 6 else int(otherwise)
    )


# --- what is known ---


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Of this process: fingerprints of models that were loaded, records that no disk would take, and layers made ready."""
    return {"fingerprints": {}, "records": OrderedDict(), "layers": OrderedDict()}


def identity(spec: RunSpec) -> tuple[str, str] | None:
    """(fingerprint, dtype) of a spec's model; None until it has been loaded once, unless it ships with the library."""
    found = known_values()["fingerprints"].get(_place(spec))
    if found is None:
        try:
            found = _bundled(spec.model, spec.dtype)
        except LookupError:
            return None
    return found


def _place(spec: RunSpec) -> str:
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


# --- work ---


def compute_uncut(spec: RunSpec) -> None:
    work.submit("spectra", {f"uncut {_place(spec)}": partial(_uncut_work, spec, known_values())})


def compute_studies(purpose: str, choice: Choice, wanted: list[WeightMethod]) -> None:
    """Queues the studies of some methods; each is kept as soon as it is done."""
    known = known_values()
    dense = next((s.dense_perplexity for m in wanted_and_known(choice) if (s := study_of(choice.who, m))), None)
    work.submit(
        purpose,
        {f"study {_place(choice.spec)} {m}": partial(_study_work, choice.spec, m, dense, known) for m in wanted},
    )


def wanted_and_known(choice: Choice) -> list[WeightMethod]:
    return [choice.method, *studies.contenders(choice.ratio), *studies.contenders(studies.RATIO)]


def tell_problems(jobs: dict[str, Job]) -> None:
    """The sentence of a result that no disk would take. What was read before may be known better by now."""
    _stored.clear()
    for job in jobs.values():
        if isinstance(job.result, str):
            st.session_state["warning"] = job.result


def _load(spec: RunSpec, known: dict[str, Any], progress: Callable[[float, str], None]) -> Any:
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    known["fingerprints"][_place(spec)] = (model.fingerprint, model.dtype_name)
    return model


def _uncut_work(spec: RunSpec, known: dict[str, Any], progress: Callable[[float, str], None]) -> str | None:
    model = _load(spec, known, progress)
    found = (model.fingerprint, model.dtype_name)
    if studies.find_uncut(*found) is not None:
        return None
    return keep(studies.study_uncut(model, progress), "", found, known)


def _study_work(
    spec: RunSpec,
    method: WeightMethod,
    dense: float | None,
    known: dict[str, Any],
    progress: Callable[[float, str], None],
) -> str | None:
    model = _load(spec, known, progress)
    found = (model.fingerprint, model.dtype_name)
    study, ranked = studies.study(
        model, method, dense=dense, progress=lambda share, doing: progress(share, f"{method.name}: {doing}")
    )
    problem = None if ranked is None else keep(ranked, ranked.method, found, known)
    return keep(study, str(method), found, known) or problem


def keep(record: Any, spelled: str, who: tuple[str, str], known: dict[str, Any]) -> str | None:
    """Keeps a record on disk, or in this process where no disk takes it, which the sentence that it returns then says."""
    problem = studies.keep_record(record, *who)
    if problem is not None:
        kind = {Uncut: "uncut", Ranked: "ranked", WeightStudy: "study"}[type(record)]
        known["records"][(kind, *who, spelled)] = record
        while len(known["records"]) > 64:
            known["records"].popitem(last=False)
    return problem


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
    return f"layer {_place(choice.spec)} {choice.layer}"


def _layer_job(choice: Choice) -> tuple[str, Callable[[Callable[[float, str], None]], None]]:
    return _layer_key(choice), partial(_layer_work, choice.spec, choice.layer, known_values())


def live_cut(choice: Choice, ranked: Ranked, grams: LayerGrams) -> tuple[LayerCut, np.ndarray]:
    """The chosen matrix at the chosen ratio, and which neurons stay."""
    multiple = int(getattr(choice.method, "multiple", 1))
    kept = studies.kept_neurons(ranked.importance[choice.layer], choice.ratio, multiple)
    return _live(f"{choice.who} {choice.layer} {choice.matrix} {choice.method}", choice.matrix, grams, kept), kept


@st.cache_resource(show_spinner=False, max_entries=256)
def _live(key: str, matrix: str, _grams: LayerGrams, _kept: np.ndarray) -> LayerCut:
    return _grams.cut(matrix, _kept)


def tell_missing(study: WeightStudy | None) -> str:
    """Why the chosen matrix's spectrum cannot be drawn, and what can be."""
    if study is None:
        return "What this method does to this model has not been computed here yet."
    return "The distances below are known, and the singular values behind them were not kept here: compute them to draw them."


def origin(choice: Choice) -> Origin:
    """What stands behind a figure of weights."""
    command = (
        f"python -m sparsity_core compress --model {quote(choice.spec.model)} --weights {quote(str(choice.method))} "
        f"--device {quote(choice.spec.device)} --dtype {quote(choice.spec.dtype)} --out results"
    )
    fields = {
        "model": choice.spec.model,
        "weights": choice.uncut.fingerprint,
        "method": str(choice.method),
        "layer": str(choice.layer),
        "matrix": choice.matrix,
        "dtype": choice.uncut.dtype,
        "command": command,
    }
    return Origin(fields, f"{choice.spec.model}, {choice.method}.", command)


def current_spec() -> RunSpec:
    return specs()[0]


def look_at(point: dict[str, Any]) -> None:
    """Follows a click on the map of every layer and matrix."""
    choice: Choice = st.session_state["spectra choice"]
    st.session_state.S_layer = round(point["x"])
    st.session_state.S_matrix = choice.uncut.matrices[round(point["y"])]
