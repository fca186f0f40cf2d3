"""What an address may ask for: a sentence or settings, no work that is not cheap, and no file before Run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streamlit.runtime.scriptrunner_utils.script_run_context import ScriptRunContext
from streamlit.testing.v1 import AppTest

from tests.app.test_app import ROOT, figures, finish, open_page, said, visitor
from tests.server import cache_with_models
from ui import compat, shared, zips
from ui.address import EXAMPLE, is_hub_id, places_of, read_address, write_address


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    monkeypatch.chdir(ROOT)


def opened(tmp_path: Path, **link: str) -> AppTest:
    at = visitor(tmp_path)
    for name, value in link.items():
        at.query_params[name] = value
    return at.run()


# --- the gate ---

NAMES = (
    "model prompt text pipeline beside beside3 beside8 names generate seed device dtype layer head token step".split()
)
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "~nosuchuser",
            "a" * 5000,
            "../../etc",
            "weights=flap(samples=1000000000)",
            "weights=prunenet(policy='~nouser/x')",
            "gate=dcp(adapter='/')",
            "eviction=a2sf(budget=" + "-" * 900 + "1)",
            "eviction=a2sf(budget=a" + ".a" * 1500 + ")",
            "dense",
            "long-0123456789abcdef",
            "9" * 400,
            "-1",
            "\x00",
            "cuda:99999",
        ]
    ),
)


@given(st.dictionaries(st.sampled_from(NAMES), HOSTILE, max_size=6))
@example({"model": "", "pipeline": "dense"})
@settings(max_examples=400)
def test_any_address_is_settings_or_a_sentence(parameters: dict[str, str]) -> None:
    try:
        asked = read_address(parameters)
    except ValueError as refused:
        assert 10 < len(str(refused)) < 600
        return
    for spec in asked.specs:
        places_of(spec.model, spec.pipeline)
    again = read_address(write_address(asked.specs, dict(asked.view), asked.names))
    assert again == asked


def test_what_may_lie_on_the_disk_is_known_from_its_name() -> None:
    assert all(is_hub_id(name) for name in ("gpt2", "meta-llama/Llama-3.2-1B", "smollm2-135m"))
    for name in ("/etc", "~/x", "./x", "a/b/c", "x.gguf", "../x", "a/..", ""):
        assert not is_hub_id(name)
    assert places_of("/models/x", "gate=dcp(adapter='/y')") == {"/models/x", "/y"}
    assert places_of(EXAMPLE.model, EXAMPLE.pipeline) == frozenset()


# --- files and work ---


@pytest.mark.parametrize(
    "link",
    [
        {"model": "{folder}", "pipeline": "dense"},
        {"pipeline": "decode=double_sparsity(calibration='{folder}/x.safetensors')"},
        {"pipeline": "gate=dcp(adapter='{folder}/x.safetensors')"},
        {"pipeline": "weights=prunenet(policy='{folder}/x.safetensors')"},
        {
            "pipeline": "eviction=a2sf(budget=64)",
            "generate": "24",
            "beside": "gate=dcp(adapter='{folder}/x.safetensors')",
        },
        {"weights": "prunenet(policy='{folder}/x.safetensors')"},
    ],
    ids=["model", "calibration", "adapter", "policy", "beside a run that is known", "weights of a page"],
)
@pytest.mark.parametrize("page", ["", "spectra", "scores", "gate", "channels"])
def test_a_file_that_a_link_names_is_not_touched_before_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, link: dict[str, str], page: str
) -> None:
    folder = private_place(tmp_path_factory)
    with touches() as touched:
        at = opened(tmp_path, **{name: value.format(folder=folder) for name, value in link.items()})
        if page:
            open_page(at, page)
    assert not at.exception
    assert not touched
    assert not at.session_state["pending"] if "pending" in at.session_state else True
    assert page or not at.button(key="run").disabled


def test_what_one_visitor_ran_is_not_touched_by_a_link_of_another(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = {"model": str(private_place(tmp_path_factory)), "pipeline": "dense"}
    first = opened(tmp_path, **link)
    with touches() as touched:
        first.button(key="run").click().run()
        finish(first)
    assert touched and "weights" in said(first)  # looked at, and refused for having none
    with touches() as touched:
        other = opened(tmp_path, **link)
        other.run()
    assert not touched
    assert "They are not looked at before you press Run" in said(other)


def private_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private-place")  # not within the cache, which a fresh queue looks through
    for name in ("config.json", "tokenizer.json", "x.safetensors", "x.json"):
        (folder / name).write_text("{}")
    return folder


@contextlib.contextmanager
def touches() -> Iterator[list[str]]:
    """What is done to files in private places meanwhile."""
    touched: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and "private-place" in str(arguments[0]):
            touched.append(f"{event} {arguments[0]}")

    audits.append(audit)
    before = os.stat

    def stat(path: Any, *args: Any, **options: Any) -> Any:
        if "private-place" in str(path):
            touched.append(f"stat {path}")
        return before(path, *args, **options)

    os.stat = stat
    try:
        yield touched
    finally:
        os.stat = before
        audits.clear()


audits: list[Any] = []
sys.addaudithook(lambda event, arguments: [audit(event, arguments) for audit in audits] and None)


@pytest.mark.parametrize(
    "pipeline",
    [
        "weights=flap(samples=2048, length=8192)",
        "weights=row_norm(ratio=0.5)",
        "decode=double_sparsity(calibration='/x')",
    ],
)
def test_a_link_proposes_and_run_disposes(tmp_path: Path, pipeline: str) -> None:
    at = opened(tmp_path, prompt="needle", pipeline=pipeline)
    assert not at.exception
    assert "pending" not in at.session_state or not at.session_state["pending"]
    assert "press Run" in said(at)
    assert not at.button(key="run").disabled


def test_a_link_that_is_long_or_of_another_model_waits_too(tmp_path: Path) -> None:
    for link in ({"text": "word " * 2000}, {"generate": "500"}, {"model": "owner/name"}):
        at = opened(tmp_path, pipeline="eviction=h2o(budget=9)", **link)
        assert not at.exception
        assert "pending" not in at.session_state or not at.session_state["pending"]


@pytest.mark.parametrize(
    "model", ["~nosuchuser", "m" * 300, "/", "/" + "x/" * 400, "owner/name", "../..", "a b"], ids=lambda m: m[:12]
)
def test_the_run_bar_draws_for_any_model(tmp_path: Path, model: str) -> None:
    at = opened(tmp_path, model=model, pipeline="dense")
    assert not at.exception
    assert at.button(key="run") and at.selectbox(key="model").value == model


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ('{"max_position_embeddings": "8192"}', "{"),
        ('{"max_position_embeddings": true}', '{"model": {"type": "BPE"}}'),
        ("[" * 100_000, "\x00\x01"),
        ("[]", "[]"),
        ("{" + " " * 2**21 + "}", ""),
    ],
    ids=["a text", "a truth", "nested", "a list", "large"],
)
def test_a_damaged_model_is_unknown_to_the_run_bar(tmp_path: Path, config: str, tokenizer: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text(tokenizer)
    at = visitor(tmp_path)
    at.session_state["model"] = str(folder)
    at.run()  # typed here, so it is looked at
    assert not at.exception
    assert at.button(key="run") and "about" in said(at)


def test_a_sentence_about_a_link_stays_until_the_next_choice(tmp_path: Path) -> None:
    at = opened(tmp_path, pipeline="eviction=a2fs(budget=8)")
    assert "did you mean 'a2sf'" in said(at)
    at.run()
    assert "did you mean 'a2sf'" in said(at)
    assert figures(at)


@pytest.mark.parametrize(
    "weights",
    [
        "prunenet(policy='~nouser/x')",
        "prunenet(policy='/')",
        "leverage(ratio=0.999)",
        "leverage(ratio=0.999999)",
        "x" * 900,
    ],
    ids=lambda text: text[:30],
)
def test_spectra_says_what_is_wrong_with_a_link(tmp_path: Path, weights: str) -> None:
    at = opened(tmp_path, weights=weights)
    open_page(at, "spectra")
    assert not at.exception


# --- a shared server ---


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"model": "/models/x"}, "runs no folders of its own"),
        ({"pipeline": "gate=dcp(adapter='/x')"}, "reads no files that a pipeline names"),
        ({"pipeline": "weights=flap(samples=2048, length=8192)"}, "tokens of calibration text"),
        ({"generate": "500"}, "generates at most 128"),
        ({"text": "x" * 40_000}, "at most 32,000 characters"),
    ],
    ids=lambda item: str(item)[:30],
)
def test_a_shared_server_says_what_it_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: dict[str, str], sentence: str
) -> None:
    asked = {"pipeline": "dense", **link}
    assert sentence not in said(opened(tmp_path, **asked))
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    at = opened(tmp_path, **asked)
    assert not at.exception
    assert sentence in said(at)
    assert "This server is shared" in [box.label for box in at.expander]


def test_a_shared_server_runs_the_models_that_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    monkeypatch.setenv("SPARSELENS_MODELS", "/models/x, /models/y.gguf")
    assert "runs no folders" not in said(opened(tmp_path, model="/models/y.gguf", pipeline="dense"))
    at = visitor(tmp_path)
    at.session_state["model"] = "/models/z"
    at.run()
    assert "runs no folders" in said(at) and at.button(key="run").disabled


def test_a_shared_server_writes_to_no_folder_of_its_own_and_trains_no_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    at = opened(tmp_path)
    open_page(at, "spectra")
    assert not at.exception
    assert not [box for box in at.text_input if box.key == "spectra_folder"]
    assert [b for b in at.button if b.key == "zip_checkpoint"]
    open_page(at, "gate")
    assert not at.exception
    assert not [b for b in at.button if b.key == "train_gate"]


def test_a_shared_server_keeps_the_last_two_zips_of_a_visitor_and_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / f"{number}.zip" for number in range(4)]
    of: dict[str, list[Path]] = {"one": [], "two": []}

    def made(by: str, place: Path) -> None:
        place.write_bytes(b"zip")
        of[by] = zips.held(place, of[by], by)

    made("two", places[1])
    for place in places:
        made("one", place)
    assert all(place.exists() for place in places)  # on a machine of one's own
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    made("one", places[3])
    assert [place.exists() for place in places] == [False, True, True, True]
    made("two", places[0])
    made("two", places[2])
    assert of == {"one": places[2:], "two": [places[0], places[2]]}
    assert [place.exists() for place in places] == [True, False, True, True]


def test_a_shared_server_keeps_the_details_of_a_fault_to_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "The run failed (OSError: /home/someone/secret)."
    assert shared.told(fault) == fault
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    assert "secret" not in shared.told(fault)
    assert shared.told("The prompt is too long.") == "The prompt is too long."


def test_a_shared_server_names_no_place_of_its_own_but_listed_models(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "The result is shown but could not be kept in /home/someone/.cache/sparselens (No space left on device)."
    assert shared.told(kept) == kept
    monkeypatch.setenv("SPARSELENS_SHARED", "1")
    monkeypatch.setenv("SPARSELENS_MODELS", "/models/x")
    assert "someone" not in shared.told(kept) and "No space left on device" in shared.told(kept)
    for sentence in (
        "/models/x reads no safetensors.",
        "The model is /models/x.",
        "owner/name is not here: see https://example.org/owner/name",
        "protect is '/[0-9]+/' or '/word/'; samples / length",
    ):
        assert shared.told(sentence) == sentence
    assert "other" not in shared.told("/models/x/other is a link.")


# --- Streamlit's own names ---


def test_streamlit_has_what_the_app_uses_beside_its_public_names() -> None:
    fields = ScriptRunContext.__dataclass_fields__
    assert {"is_history_navigation", "session_id"} <= set(fields)
    assert callable(compat.StreamlitPage.run)
    assert not compat.came_by_history() and compat.session_id() == ""  # outside of a session
    for path in [ROOT / "app.py", *(ROOT / "ui").rglob("*.py"), *(ROOT / "pages").glob("*.py")]:
        if path.name != "compat.py":
            assert "streamlit.runtime" not in path.read_text() and "streamlit.navigation" not in path.read_text(), path
