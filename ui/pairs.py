"""How many pairs of a query and a key each stage of a run removed: counted at once for a short text, on demand for a long one."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from sparsity_core.record import Trace, key_of
from sparsity_core.work import Job
from ui import work
from ui.session import Shown
from viz import fates, removed

_AT_ONCE = 1024  # tokens whose pairs are counted while the page is drawn


def known_pairs(item: Shown) -> pd.DataFrame | None:
    """The run's `removed_table`; None where it has not been counted, or cannot be."""
    if not fates.choices_kept(item.trace):
        return None
    key = _key(item)
    return _counted(key, item.trace) if item.trace.n_tokens <= _AT_ONCE else _known().get(key)


def offer_pairs(item: Shown) -> None:
    """A button that counts the pairs of a long text, and its progress."""
    purpose, n = f"pairs_{item.letter}", item.trace.n_tokens
    if not work.pending(purpose):
        st.caption(f"{n:,} tokens have {n * (n + 1) // 2:,} pairs of a query and a key in each head.")
        if st.button("Count them", key=f"count_{purpose}", icon=":material/calculate:"):
            work.submit(purpose, {_key(item): partial(removed.removed_table, item.trace)})
            st.rerun()
    work.watch(purpose, _keep)


def _key(item: Shown) -> str:
    return f"pairs {key_of(item.spec)}"


@st.cache_resource(show_spinner=False, max_entries=32)
def _counted(key: str, _trace: Trace) -> pd.DataFrame:
    return removed.removed_table(_trace)


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, pd.DataFrame]:
    """Tables of long texts that were counted in this process."""
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    _known().update({key: job.result for key, job in jobs.items()})
