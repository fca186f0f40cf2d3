"""Clicks on a Plotly chart, told to Python: Streamlit's own selections know no heatmaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st


def hear_clicks(figure: str, on_click: Callable[[dict[str, Any]], None]) -> None:
    """Calls `on_click` with the x and y of each point clicked in the chart of key `figure`, before the page runs again.

    Draws nothing and takes no room. The chart may come and go, or be drawn anew, while this stays.
    """
    key = f"clicks_{figure}"

    def tell() -> None:
        point = st.session_state[key].clicked
        if point is not None:
            on_click(point)

    _component(key=key, data={"figure": figure}, on_clicked_change=tell)


# Out of the page's flow, in which an element without height still has a gap.
_CSS = """
[class*="st-key-clicks_"] {
  position: absolute;
}
"""

_JS = """
const ears = new WeakMap();

// Streamlit calls this at every change of data or theme, on the same element, and at the end calls what it returned last.
export default function ({ data, parentElement, setTriggerValue }) {
  if (!ears.has(parentElement)) ears.set(parentElement, new Ear());
  const ear = ears.get(parentElement);
  ear.figure = data.figure;
  ear.send = (point) => setTriggerValue("clicked", point);
  return () => {
    ear.close();
    ears.delete(parentElement);
  };
}

class Ear {
  constructor() {
    this.attach = this.attach.bind(this);
    this.tell = this.tell.bind(this);
    document.addEventListener("pointerdown", this.attach, true);
  }

  // When it is pressed and not before: every change of the figure makes another chart, of which nobody tells.
  attach(event) {
    const plot = event.target.closest?.(`.st-key-${CSS.escape(this.figure)} .js-plotly-plot`);
    if (!plot) return;
    this.detach();
    this.plot = plot;
    plot.on("plotly_click", this.tell);
  }

  detach() {
    this.plot?.removeListener?.("plotly_click", this.tell);
    this.plot = null;
  }

  tell({ points }) {
    if (points.length) this.send({ x: points[0].x, y: points[0].y });
  }

  close() {
    document.removeEventListener("pointerdown", this.attach, true);
    this.detach();
  }
}
"""

_component = st.components.v2.component("sparselens_clicks", css=_CSS, js=_JS, isolate_styles=False)
