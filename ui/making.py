"""A file that takes seconds to make: made beside the page, with progress and Cancel, and offered when it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import streamlit as st

from sparsity_core.work import explain
from ui.compat import rerun_here
from ui.literal import literal

Tell = Callable[[float, str], None]  # the share that is done, and what is being done
Make = Callable[[Tell], bytes]

_EVERY = 0.3  # seconds between two looks at the progress


class _Cancelled(Exception):
    pass


class Making:
    """One file on a thread of its own. `data` or `problem` is there when it has finished; neither after `cancel`."""

    def __init__(self, wanted: Hashable, make: Make) -> None:
        self.wanted, self.share, self.doing = wanted, 0.0, ""
        self.data: bytes | None = None
        self.problem: str | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), name="zip", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        self._cancelled.set()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self, make: Make) -> None:
        try:
            self.data = make(self._tell)
        except _Cancelled:
            pass
        except Exception as error:  # whatever a figure's drawing raises is told beside the button
            self.problem = explain(error)

    def _tell(self, share: float, doing: str) -> None:
        if self._cancelled.is_set():
            raise _Cancelled
        self.share, self.doing = share, doing


def offer_zip(key: str, label: str, file_name: str, wanted: Hashable, prepare: Callable[[], Make]) -> None:
    """A button that makes a zip, its progress and Cancel meanwhile, and the zip when it is there.

    wanted: what the zip depends on; one that was made of something else is not offered. prepare: what reads the page, in the
    session, and returns what makes the zip without it.
    """
    name = f"making {key}"
    making: Making | None = st.session_state.get(name)
    if making is not None and making.wanted != wanted:
        making.cancel()
        making = st.session_state[name] = None
    if making is not None and not making.finished:
        _watch(name)
        return
    if making is not None and making.data is not None:
        st.download_button(
            f"{file_name}, {len(making.data) / 2**20:.1f} MB",
            data=making.data,
            file_name=file_name,
            mime="application/zip",
            key=f"take_{key}",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
        )
        return
    if making is not None and making.problem:
        st.warning(literal(f"There is no zip. {making.problem}"))
    if st.button(label, icon=":material/folder_zip:", key=f"make_{key}", width="stretch"):
        with st.spinner("Reading the page's settings"):
            st.session_state[name] = Making(wanted, prepare())
        rerun_here()


@st.fragment(run_every=_EVERY)
def _watch(name: str) -> None:
    making: Making | None = st.session_state.get(name)
    if making is None:
        return
    if making.finished:
        st.rerun()
    st.progress(min(1.0, making.share), text=literal(making.doing))
    if st.button("Cancel", key=f"cancel {name}", icon=":material/close:", width="stretch"):
        making.cancel()
        st.session_state[name] = None
        st.rerun()
