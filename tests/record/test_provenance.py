"""One record tells where a trace and where a figure come from, and files made before can be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_core.record import Provenance, Trace, View
from tests.traces import trace

FIGURE = replace(
    trace().provenance,
    add_bos="no",
    inputs={"weights.policy": "0123"},
    versions={"torch": "2.9", "hub revision": "a1b2"},
    caption="What stays of “a”",
    command="sparselens run",
    view=View(layer=0, head="first", token=3, step=0, page="tokens"),
    facts={"tokens": "8", "generated": "2"},
)
# A figure's file as it was before traces and figures shared a record.
BEFORE = {
    "model": "smollm2-135m",
    "weights": "0123456789ab",
    "pipeline": "dense | eviction=a2sf(budget=3)",
    "prompt": "ba9876543210",
    "tokens": "8",
    "generated": "0",
    "seed": "3",
    "start token": "auto",
    "weights.policy": "0123",
    "dtype": "float32",
    "device": "cpu",
    "kernels": "reference, triton",
    "versions": "torch 2.9, hub revision a1b2",
    "command": "sparselens run \\\n  --seed 3",
}


def test_a_figures_file_keeps_its_keys_and_their_order() -> None:
    assert list(replace(FIGURE, view=None).fields) == list(BEFORE)
    assert list(FIGURE.fields)[6:11] == ["layer", "head", "token", "step", "page"]


def test_files_made_before_are_read_into_the_record() -> None:
    read = Provenance.from_json(json.dumps({"caption": "c", "fields": BEFORE}))
    assert read.fields == BEFORE and read.caption == "c"
    assert (read.model, read.fingerprint, read.prompt_hash, read.seed) == (
        *list(BEFORE.values())[:2],
        BEFORE["prompt"],
        3,
    )
    assert read.backends == ("reference", "triton") and read.versions == {"torch": "2.9", "hub revision": "a1b2"}


def test_what_a_figures_file_tells_comes_back() -> None:
    back = Provenance.from_json(FIGURE.to_json())
    assert back.fields == FIGURE.fields
    assert back.view == FIGURE.view and back.seed == 0
    assert Provenance.from_json(back.to_json()) == back


def test_the_text_of_a_prompt_is_in_no_file() -> None:
    assert "secret" not in replace(FIGURE, prompt="secret").to_json()


@given(
    st.dictionaries(
        st.sampled_from([*BEFORE, "layer", "head", "step", "page", "method"]),
        st.text() | st.integers().map(str) | st.sampled_from(["", "-0", "007", "first", "a b, c", "a 1, a 2", "٣"]),
    )
)
def test_fields_of_any_spelling_come_back(fields: dict[str, str]) -> None:
    assert Provenance.of_fields("c", fields).fields == fields


@pytest.mark.parametrize("value", [3, None, [1], {"a": 1}])
@pytest.mark.parametrize("key", ["seed", "kernels", "model", "layer", "other"])
def test_a_field_that_is_no_text_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="give it as text"):
        Provenance.from_json(json.dumps({"caption": "c", "fields": {key: value}}))


def test_a_stored_trace_holds_what_a_run_knows_and_traces_of_before_are_read() -> None:
    plain = json.loads(json.dumps(trace().provenance.to_plain()))
    assert {"view", "facts", "caption", "prompt"}.isdisjoint(plain)
    assert Provenance.of_plain(plain) == trace().provenance
    del plain["add_bos"]
    assert Provenance.of_plain(plain).add_bos == "auto"
    del plain["seed"]
    with pytest.raises(KeyError):
        Provenance.of_plain(plain)


def test_a_stored_trace_can_hold_prompt_and_view() -> None:
    made = trace(provenance=replace(FIGURE, prompt="The cat"))
    assert Trace.from_bytes(made.to_bytes()).provenance == made.provenance
