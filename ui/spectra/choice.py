"""What the Spectra page looks at, its part of the address, and where its figures come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from sparsity_core import methods, studies
from sparsity_core.kinds import Pipeline, WeightMethod
from sparsity_core.record import Provenance, RunSpec, View, command_line
from sparsity_core.studies import Uncut
from sparsity_core.work import EMBEDDED, explain
from ui import shared
from ui.address import places_of
from ui.knobs import knob_widgets, made
from ui.literal import literal
from ui.session import specs
from ui.trust import may_touch, propose, trust

RATIOS = tuple(round(0.05 * i, 2) for i in range(16))  # 0 to 0.75, as the slider steps


_LETTER = "S"  # of the page's own method, beside A and B


_HELD = ("S_", "spectra_", "channels_", "gate_")  # widgets whose choices outlive a visit to another page


_VIEW = ("layer", "head", "token", "step")


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
        return self.method.ratio


def example_method() -> WeightMethod:
    """What the page opens on: the trained policy where one ships, else the best ranking that needs none."""
    trained = any((studies.SHIPPED_SPECTRA.parent / "policies").glob("*.json"))
    name = "prunenet" if trained and "prunenet" in methods.names("weights") else "leverage"
    return studies.at_ratio(methods.get(name)(), studies.RATIO)  # type: ignore[arg-type]


def hold_choices(on_page: bool) -> None:
    """Keeps the values of this page's widgets while another page is drawn: Streamlit forgets them at the end of a run.

    While they are drawn, the browser is told their values again: it may have drawn them too late to hear of them the first time.
    """
    if not on_page:
        st.session_state["spectra away"] = True
    for key in list(st.session_state):
        if str(key).startswith(_HELD) or key in _VIEW:
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
        method: Any = made(cls, values)
        shared.check(replace(spec, pipeline=f"weights={method}"))
        if method.one_ranking:  # the page cuts it at once, and a large ratio or multiple may leave nothing
            method.n_kept(len(uncut.row_norm[0]))
    except ValueError as error:
        st.warning(literal(explain(error)), icon=":material/warning:")
        return None
    if not _may_read(method):
        return None
    choice = Choice(spec, uncut, method, int(st.session_state.S_layer), st.session_state.S_matrix)
    st.session_state["spectra choice"] = choice
    st.session_state["layer"] = choice.layer  # the layer that the other pages look at
    return choice


def _may_read(method: WeightMethod) -> bool:
    """Whether the method's files may be read; a button, and why, for those that a link alone named."""
    places = places_of(EMBEDDED, f"weights={method}")
    if may_touch(places):
        return True
    st.info(literal(f"The link names a file of this machine, {', '.join(places)}. It is not read before you say so."))
    if st.button("Read it", key="read_linked", icon=":material/file_open:"):
        trust(places)
        st.rerun()
    return False


def _rows(n: int) -> list[Any]:
    return [st.columns(4) for _ in range(-(-n // 4))]


def _ratios() -> list[float]:
    """The slider's steps, and the ratio of a link between them."""
    return sorted({*RATIOS, st.session_state.S_ratio})


def _fill_in(uncut: Uncut) -> None:
    """Chooses what is not chosen yet, by the address or by default, and brings what this model does not have into its range."""
    if "S_method" not in st.session_state:
        method = _linked()
        st.session_state["spectra linked"] = method
        st.session_state.S_method = method.name
        st.session_state.S_ratio = method.ratio
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
        propose(places_of(EMBEDDED, f"weights={method}"))
        return method
    except ValueError as error:
        st.warning(literal(f"The link's method could not be read. {explain(error)} The example is shown instead."))
        return example_method()


def _whole(given: str | None, otherwise: int) -> int:
    return (
        int(given) if given is not None and given.isascii() and given.isdigit() and len(given) < 6 else int(otherwise)
    )


def origin(choice: Choice) -> Provenance:
    """What stands behind a figure of weights."""
    spec = choice.spec
    command = command_line(
        "compress", model=spec.model, weights=str(choice.method), device=spec.device, dtype=spec.dtype, out="results"
    )
    return Provenance(
        model=spec.model,
        fingerprint=choice.uncut.fingerprint,
        dtype=choice.uncut.dtype,
        inputs=studies.study_inputs(choice.method),
        command=command,
        view=View(layer=choice.layer, page="spectra"),
        facts={"method": str(choice.method), "matrix": choice.matrix},
    )


def current_spec() -> RunSpec:
    return specs()[0]


def look_at(point: dict[str, Any]) -> None:
    """Follows a click on the map of every layer and matrix."""
    choice: Choice = st.session_state["spectra choice"]
    st.session_state.S_layer = round(point["x"])
    st.session_state.S_matrix = choice.uncut.matrices[round(point["y"])]
