"""Widgets made from a method's own fields: no page knows any method by name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Method, Pipeline, parse_value, spell

DENSE = "dense"
WHOLE = "none"


def method_picker(letter: str, current: Method | None) -> str:
    """Chooses an eviction method, or the dense model, and its knobs. Returns the pipeline's canonical text.

    Raises ValueError, as a sentence, where the knobs do not fit together; all of them are drawn by then.
    """
    names = [DENSE, *methods.names("eviction")]
    key = f"{letter}_method"
    if key not in st.session_state:
        st.session_state[key] = current.name if current else DENSE
    name = st.selectbox(f"Method {letter}", names, key=key, help="what decides which cached keys stay")
    if name == DENSE:
        return DENSE
    cls = methods.get(name)
    st.caption((cls.__doc__ or "").strip().split("\n\n")[0])
    same = current if current is not None and current.name == name else None
    first, *rest = cls.knobs()
    values = {first.name: _widget(letter, cls, first, same)}
    main = [k for k in rest if k.metadata["prominent"]]
    values |= {k.name: _widget(letter, cls, k, same) for k in main}
    others = [k for k in rest if k not in main]
    if others:
        with folded("More settings", f"{letter}_{name}_more") as opened:
            values |= {k.name: _widget(letter, cls, k, same, opened) for k in others}
    return f"eviction={made(cls, values)}"


def made(cls: type[Method], values: Mapping[str, Any]) -> Method:
    """The method with these knobs, as widgets give them. Raises ValueError, as a sentence, where they do not fit."""
    found = dict(values)
    for knob in cls.knobs():
        if knob.metadata["parse"] and isinstance(found.get(knob.name), str):  # typed
            try:
                found[knob.name] = parse_value(found[knob.name])
            except ValueError as error:
                raise ValueError(f"{_label(knob)}: {error}. {knob.metadata['help']}") from None
    return cls(**found)


_ASIDE = {
    "weights": ("Weights", "Cut by", "what is cut out of the model before it reads the prompt"),
    "gate": (
        "Gate",
        "Dropped by",
        "a trained gate, by which a token drops earlier ones for good from all heads of a layer",
    ),
    "prefill": (
        "Prefill",
        "Shown by",
        "which earlier keys each query of the prompt sees; all of them stay in the cache for what comes after the prompt",
    ),
    "decode": ("Decode", "Read by", "which cached keys each query reads; what it leaves unread stays in the cache"),
}


def aside_picker(stage: str, letter: str, current: Method | None) -> str:
    """Chooses the method of a stage beside eviction, or none. Returns "weights=…", "decode=…" and the like, or no text.

    Raises ValueError, as a sentence, where the knobs do not fit together; all of them are drawn by then.
    """
    title, label, help_ = _ASIDE[stage]
    key = f"{letter}_{stage}"
    with folded(f"{title} {letter}", f"{key}_fold", expanded=current is not None) as opened:
        options = [WHOLE, *methods.names(stage)]
        name = held(
            key,
            current.name if current else WHOLE,
            lambda: st.selectbox(label, options, key=key, help=help_),
            drawn=opened,
        )
        if name == WHOLE:
            return ""
        cls = methods.get(name)
        return f"{stage}={made(cls, knob_widgets(letter, cls, cls.knobs(), current, drawn=opened))}"


def joined(*stages: str) -> str:
    """The canonical pipeline of some stages, each spelled, dense or empty."""
    return str(Pipeline.parse(" ".join(stage for stage in stages if stage and stage != DENSE) or DENSE))


def knob_widgets(
    letter: str, cls: type[Method], knobs: Sequence[Field[Any]], current: Method | None, *, drawn: bool = True
) -> dict[str, Any]:
    """A widget for each of a method's knobs, at first with the values of `current` where that is the same method."""
    same = current if current is not None and current.name == cls.name else None
    return {knob.name: _widget(letter, cls, knob, same, drawn) for knob in knobs}


@contextmanager
def folded(label: str, key: str, *, expanded: bool = False) -> Generator[bool]:
    """An expander whose widgets are `held`, and drawn only while it is open. Yields whether it is.

    A browser draws every widget of the page again at each choice, those that are folded away too.
    """
    box = st.expander(label, expanded=expanded, key=key, on_change="rerun")
    with box:
        yield bool(box.open)


def held(key: str, default: Any, draw: Callable[[], Any], *, drawn: bool) -> Any:
    """The value of the widget of this key, `default` at first. While it is not drawn, the value that it had when it was."""
    if not drawn or key not in st.session_state:  # what is drawn is not set: that would undo what is being typed
        st.session_state[key] = st.session_state.get(key, default)  # Streamlit forgets keys that a run does not touch
    return draw() if drawn else st.session_state[key]


def keep_settings(letter: str) -> None:
    """Holds what was set for a pipeline that is not drawn now."""
    for key in list(st.session_state):
        if str(key).startswith(f"{letter}_") and not str(key).endswith(("_more", "_fold")):  # those are expanders
            st.session_state[key] = st.session_state[key]


def _widget(letter: str, cls: type[Method], knob: Field[Any], current: Method | None, drawn: bool = True) -> Any:
    key = f"{letter}_{cls.name}_{knob.name}"
    default = getattr(current, knob.name) if current is not None else knob.default
    if default is MISSING:
        default = None
    if knob.metadata["parse"]:
        default = spell(default)
    if knob.name != "budget":
        return held(key, default, lambda: _drawn(key, knob), drawn=drawn)
    kept = f"{letter}_any_budget"  # of any method: two are compared at the same one
    value = held(key, st.session_state.get(kept, default), lambda: _drawn(key, knob), drawn=drawn)
    st.session_state[kept] = value
    return value


def _label(knob: Field[Any]) -> str:
    return knob.name.replace("_", " ")


def _drawn(key: str, knob: Field[Any]) -> Any:
    default = knob.default
    label, text = _label(knob), knob.metadata["help"]
    if knob.metadata["choices"]:
        return st.selectbox(label, knob.metadata["choices"], key=key, help=text)
    if knob.metadata["parse"]:
        return st.text_input(label, key=key, help=text)
    if isinstance(default, bool):
        return st.toggle(label, key=key, help=text)
    if isinstance(default, str):
        return st.text_input(label, key=key, help=text)
    if isinstance(default, int):
        return st.number_input(label, step=1, key=key, help=text)
    return st.number_input(label, step=0.05, format="%.4g", key=key, help=text)


def choose_one(label: str, options: Mapping[str, str], key: str) -> str:
    """One of some named options, the first until another is chosen."""
    if key not in st.session_state:
        st.session_state[key] = next(iter(options))
    chosen = st.segmented_control(label, list(options), format_func=options.__getitem__, key=key, required=True)
    return chosen or next(iter(options))
