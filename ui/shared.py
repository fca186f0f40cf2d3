"""A server that several people use: `SPARSELENS_SHARED=1` turns off what reaches the server's own files.

`SPARSELENS_MODELS` lists, separated by commas, the folders and GGUF files of the server that visitors may run.
"""

from __future__ import annotations

import logging
import os
import re

import streamlit as st

from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec
from sparsity_core.work import EMBEDDED
from ui.address import is_hub_id, places_of

MOST_LETTERS = 32_000  # of a prompt: about 8,000 tokens
MOST_NEW = 128
MOST_READ = 2**16  # tokens of calibration text
MOST_JOBS = 32  # of one session, waiting or running
_PATH = re.compile(r"(?<![\w/.~-])~?/[\w.~-]+(/[\w.~-]+)+")  # two names at least: not the rule /word/, nor owner/name


def is_shared() -> bool:
    return os.environ.get("SPARSELENS_SHARED", "") not in ("", "0")


def listed_models() -> list[str]:
    """The models of the server's own disk that visitors may run."""
    return [name.strip() for name in os.environ.get("SPARSELENS_MODELS", "").split(",") if name.strip()]


def check(spec: RunSpec) -> None:
    """Raises ValueError, as a sentence, for a run that a shared server does not do. Touches no file."""
    if not is_shared():
        return
    listed = listed_models()
    if spec.model not in listed and not is_hub_id(spec.model):
        allowed = f"or one of {', '.join(listed)}" if listed else "as no folder is listed here"
        raise ValueError(
            f"this server is shared and runs no folders of its own: choose {EMBEDDED}, a hub id such as owner/name, {allowed}"
        )
    if places_of(EMBEDDED, spec.pipeline):
        raise ValueError(
            "this server is shared and reads no files that a pipeline names: leave adapter, policy and calibration "
            "at auto"
        )
    if len(spec.prompt) > MOST_LETTERS:
        raise ValueError(
            f"this server is shared and reads prompts of at most {MOST_LETTERS:,} characters; this one has "
            f"{len(spec.prompt):,}. Shorten it, or run SparseLens on your own machine"
        )
    if spec.generate > MOST_NEW:
        raise ValueError(f"this server is shared and generates at most {MOST_NEW} tokens; got {spec.generate}")
    check_reading(spec.pipeline)


def check_reading(pipeline: str) -> None:
    """Raises ValueError where a method would read more calibration text than a shared server gives to one visitor."""
    weights = Pipeline.parse(pipeline).weights
    read = 0 if weights is None else weights.tokens_read
    if is_shared() and read > MOST_READ:
        raise ValueError(
            f"this server is shared and reads at most {MOST_READ:,} tokens of calibration text; samples × length is {read:,}"
        )


def check_pressed(spec: RunSpec) -> None:
    """`check`, and that a hub id is not the name of a folder below the server's own. To be called once Run is pressed."""
    check(spec)
    if is_shared() and spec.model not in [EMBEDDED, *listed_models()] and os.path.exists(spec.model):
        raise ValueError("this server is shared, and a folder of its own has this name: choose another model")


def check_jobs(jobs: int) -> None:
    """Raises ValueError where one session would have more jobs than a shared server gives to it."""
    if is_shared() and jobs > MOST_JOBS:
        raise ValueError(
            f"this server is shared and gives a visitor {MOST_JOBS} jobs at once: wait for yours to finish"
        )


def told(sentence: str) -> str:
    """A sentence as visitors see it. A shared server keeps faults that are no sentence of ours to its log, and its paths."""
    if not is_shared():
        return sentence
    if sentence.startswith("The run failed ("):
        logging.getLogger("sparselens").error(sentence)
        return "The run failed. Whoever runs this server finds the reason in its log."
    listed = listed_models()
    return _PATH.sub(lambda path: path[0] if path[0].rstrip(".") in listed else "a place on this server", sentence)


def notice() -> None:
    """Says what is off on a shared server, and why."""
    if not is_shared():
        return
    with st.expander("This server is shared", icon=":material/group:"):
        st.markdown(
            "Several people use it, so nobody reaches its files. "
            f"Models come from the hub or from the server's list; pipelines name no files; models are taken away as a zip, "
            f"not written to a folder, and the last two of a visitor are kept; gates are not trained "
            f"here. A prompt has at most {MOST_LETTERS:,} characters, a "
            f"continuation {MOST_NEW} tokens, and a visitor {MOST_JOBS} jobs. Errors are told without details. "
            "On your own machine nothing of this is off: `make app`."
        )
