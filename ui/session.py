"""What a browser session looks at: the specs shown, where in them, and the link that brings it back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from sparsity_core.kinds import Pipeline
from sparsity_core.models import ADD_BOS, PROMPTS
from sparsity_core.record import RunSpec, Store, Trace, key_of
from sparsity_core.work import Recent, explain, keep_prompt, keeps, kept_prompt

EXAMPLE = RunSpec(
    model="smollm2-135m",
    prompt=PROMPTS["needle"].text,
    pipeline="eviction=a2sf(budget=64)",
    generate=24,
)
MOST_NEW, MOST_SEED = 512, 2**31 - 1
_MOST_TRACE_BYTES = 512 * 1024**2  # in memory, of all sessions together
_LONGEST_LINK = 1500  # characters of prompt; browsers and chat programs cut longer addresses


@dataclass(frozen=True)
class Shown:
    """One pipeline on the page: "A", or "B" beside it."""

    letter: str
    spec: RunSpec
    trace: Trace


def specs() -> list[RunSpec]:
    """The specs that the page shows: one, or A and B."""
    return st.session_state.specs


def shown() -> list[Shown]:
    """The traces of the page's specs, as far as they have been computed."""
    found = [(letter, spec, trace_of(spec)) for letter, spec in zip("AB", specs(), strict=False)]
    return [Shown(letter, spec, trace) for letter, spec, trace in found if trace is not None]


def trace_of(spec: RunSpec) -> Trace | None:
    """A spec's trace from the store, or from a job whose result could not be stored; None where it was never run."""
    unsaved = st.session_state.get("unsaved", {})
    key = key_of(spec)
    if key in unsaved:
        return unsaved[key]
    found = _recent().get(key)
    if found is None and (stored := Store().get(spec)) is not None:
        found = _recent().keep(key, stored)
    return found


@st.cache_resource(show_spinner=False)
def _recent() -> Recent[Trace]:
    """The traces that sessions looked at last."""
    recent: Recent[Trace] = Recent(_MOST_TRACE_BYTES, lambda trace: trace.n_bytes)
    keeps("traces looked at last", recent.n_bytes)
    return recent


def start() -> str | None:
    """Fills a new session from its address. Returns a sentence where the address could not be followed."""
    if "specs" in st.session_state:
        return None
    st.session_state.specs, st.session_state.view = [EXAMPLE], {}
    try:
        st.session_state.specs = _specs_from(st.query_params)
    except ValueError as error:
        return f"The link could not be followed. {explain(error)} The bundled example is shown instead."
    st.session_state.view = {k: st.query_params[k] for k in ("layer", "head", "token", "step") if k in st.query_params}
    return None


def _specs_from(parameters: Mapping[str, str]) -> list[RunSpec]:
    if not {"pipeline", "prompt", "text", "model"} & set(parameters):
        return [EXAMPLE]
    prompt = parameters.get("text")
    if prompt is None:
        name = parameters.get("prompt", "needle")
        prompt = PROMPTS[name].text if name in PROMPTS else kept_prompt(name)
        if prompt is None:
            raise ValueError(
                f"there is no prompt {name!r} in the library, and one too long for a link is found again only where it was run"
            )
    spec = RunSpec(
        model=parameters.get("model", EXAMPLE.model),
        prompt=prompt,
        pipeline=str(Pipeline.parse(parameters.get("pipeline", "dense"))),
        device=parameters.get("device", "cpu"),
        dtype=parameters.get("dtype", "float32"),
        generate=_number(parameters.get("generate", "0"), MOST_NEW),
        add_bos=_start(parameters.get("add_bos", "auto")),
        seed=_number(parameters.get("seed", "0"), MOST_SEED),
    )
    beside = parameters.get("beside")
    return [spec] if beside is None else [spec, replace(spec, pipeline=str(Pipeline.parse(beside)))]


def _start(given: str) -> str:
    if given not in ADD_BOS:
        raise ValueError(f"add_bos is one of {', '.join(ADD_BOS)}; got {given!r}")
    return given


def _number(given: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", given) or int(given) > most:
        raise ValueError(f"generate and seed are whole numbers, at most {MOST_NEW} and {MOST_SEED:,}; got {given!r}")
    return int(given)


def link_parameters(view: Mapping[str, Any]) -> dict[str, str]:
    """The address that brings this view back."""
    spec, *rest = specs()
    parameters = {
        "model": spec.model,
        "pipeline": spec.pipeline,
        **({"beside": rest[0].pipeline} if rest else {}),
        "generate": str(spec.generate),
        "seed": str(spec.seed),
        "device": spec.device,
        "dtype": spec.dtype,
        **({} if spec.add_bos == "auto" else {"add_bos": spec.add_bos}),
    }
    known = next((name for name, prompt in PROMPTS.items() if prompt.text == spec.prompt), None)
    if known is not None:
        parameters["prompt"] = known
    elif len(spec.prompt) <= _LONGEST_LINK:
        parameters["text"] = spec.prompt
    else:
        parameters["prompt"] = keep_prompt(spec.prompt)
    return parameters | {k: str(v) for k, v in view.items()}
