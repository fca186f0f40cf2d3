"""The texts on which pipelines are measured beside the one on the page, and what is known of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.evaluate import texts_of_lines
from sparsity_core.record import key_of
from sparsity_core.work import Job, explain, read_text
from ui import shared, work
from ui.compat import rerun_here
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown
from ui.tasks import compare

PASSAGES, LENGTH = 16, 192  # of the evaluation text, and tokens of each
MOST_TEXTS, MOST_LETTERS = 64, 200_000  # of one's own
_KEPT = 64  # pipelines, in this process
_SOURCES = {"passages": f"{PASSAGES} passages", "own": "Texts of my own"}


def texts_asked() -> tuple[str, ...]:
    """The texts of one's own, where these are chosen; none where the passages are."""
    own: tuple[str, ...] = st.session_state.get("own texts", ())
    return own if st.session_state.get("texts_source") == "own" else ()


def told_texts() -> str:
    """What the texts are, in words."""
    own = texts_asked()
    return f"{len(own)} texts of your own" if own else f"{PASSAGES} passages of {LENGTH} tokens"


def known_texts(shown: list[Shown]) -> dict[str, list[compare.Measured]]:
    """What each pipeline that was measured does on each of the texts, by its title."""
    known = _known()
    return {item.title: known[key] for item in shown if (key := key_of_texts(item)) in known}


def choose_texts() -> None:
    """Draws the choice of the texts; those of one's own stay for the session."""
    if choose_one("On", _SOURCES, "texts_source") == "passages":
        return
    files = st.file_uploader(
        "Text files, or .jsonl with an object a line that has `text` or `prompt`",
        type=["txt", "jsonl"],
        accept_multiple_files=True,
        key="texts_files",
    )
    lines = st.text_area("A text a line", key="texts_lines", height=120)
    try:
        found = tuple(text for file in files for text in _read(file.name, file.getvalue()))
        found += tuple(line.strip() for line in lines.split("\n") if line.strip())
        _check(found)
    except ValueError as error:
        st.error(literal(explain(error)))
        return
    if found and found != st.session_state.get("own texts"):
        st.session_state["own texts"] = found
        rerun_here()  # figures above are of them too
    st.caption(f"{len(texts_asked())} texts. Two are needed at least, {MOST_TEXTS} are read at most.")


def _read(name: str, data: bytes) -> list[str]:
    content = read_text(name, data)
    return texts_of_lines(name, content) if name.endswith(".jsonl") else [content]


def _check(texts: tuple[str, ...]) -> None:
    most = shared.MOST_LETTERS if shared.is_shared() else MOST_LETTERS
    letters = sum(map(len, texts))
    if len(texts) > MOST_TEXTS or letters > most:
        raise ValueError(
            f"a page reads at most {MOST_TEXTS} texts of {most:,} characters together; got {len(texts)} of {letters:,}. "
            "`evaluate.over_texts` reads more"
        )


def measure_texts(shown: list[Shown]) -> None:
    """A button that measures the pipelines that are not known yet, and the progress once it is pressed."""
    known, own = known_texts(shown), texts_asked()
    enough = len(own) != 1 and (bool(own) or st.session_state.get("texts_source") != "own")
    missing = (
        {}
        if not enough
        else {
            key_of_texts(item): partial(compare.over_texts, item.spec, own, PASSAGES, LENGTH)
            for item in shown
            if item.title not in known
        }
    )
    offered = missing and not work.pending("tested")
    if offered and st.button("Measure", key="run_tested", icon=":material/science:"):
        work.submit("tested", missing)
        st.rerun()
    work.watch("tested", _keep)


def key_of_texts(item: Shown) -> str:
    """The name of what a pipeline does on the texts, whatever the text on the page."""
    own = texts_asked()
    texts = hashlib.sha256("\0".join(own).encode("utf-8", "surrogatepass")).hexdigest() if own else "passages"
    return f"texts {texts} {key_of(replace(item.spec, prompt='', generate=0, question='auto'))}"


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, list[compare.Measured]]:
    """What was measured in this process: a few numbers for each text."""
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known: dict[str, Any] = _known()
    known.update({key: job.result for key, job in jobs.items()})
    while len(known) > _KEPT:
        known.pop(next(iter(known)))
