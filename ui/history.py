"""The browser's Back and Forward: one entry for each choice that a person makes.

Streamlit makes an entry of every change of the address. A change that no key and no pointer preceded, or that only adds
what was chosen by default, completes the entry that is there.
"""

from __future__ import annotations

import streamlit as st


def one_entry_a_choice() -> None:
    """To be called in every run of the script, at the same place; draws nothing."""
    _component(key="history_entries", data={})


_CSS = """
[class*="st-key-history_entries"] {
  position: absolute;
}
"""

_JS = """
export default function () {
  if (window.sparselensHistory) return;
  window.sparselensHistory = true;
  const push = window.history.pushState;
  let acted = false;

  // Whether `after` only adds parameters to the address that the entry has.
  function completes(after) {
    const now = new URL(window.location.href);
    if (after.pathname !== now.pathname) return false;
    return [...now.searchParams].every(([name, value]) => after.searchParams.get(name) === value);
  }

  window.history.pushState = function (state, title, url) {
    const after = new URL(url, window.location.href);
    if (acted && !completes(after)) {
      acted = false;
      return push.call(this, state, title, url);
    }
    return this.replaceState(state, title, url);
  };
  for (const act of ["pointerdown", "keydown"]) window.addEventListener(act, () => (acted = true), true);
  window.addEventListener("popstate", () => (acted = false), true);
}
"""

_component = st.components.v2.component("sparselens_history", css=_CSS, js=_JS, isolate_styles=False)
