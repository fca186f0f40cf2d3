"""What a visit shows at once: the page without charts, and an image of the cells in the place of the first one.

A browser needs seconds to load Plotly and shows nothing else meanwhile. So the charts are asked for when it has painted the
page, and the image stays until its chart is drawn.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import streamlit as st


def painted() -> bool:
    """Whether this session's browser has shown a page, so that charts may be drawn."""
    return bool(st.session_state.get("painted"))


@contextmanager
def first_look(name: str, cells: Callable[[], bytes], height: int, margin: Mapping[str, int]) -> Generator[None]:
    """The place of the figure `name`, of this height in px: until it is drawn, the PNG `cells` is where its cells will be."""
    with st.container(key=f"spot_{name}"):
        if not st.session_state.get("first look is over"):
            image = "data:image/png;base64," + base64.b64encode(cells()).decode()
            _component(key=f"look_{name}", data={"image": image, "height": height, "margin": dict(margin)})
        yield


def end_first_look() -> None:
    """To be called at the end of a page: has it drawn again, charts and all, as soon as the browser has painted it."""
    if painted():
        st.session_state["first look is over"] = True
        return

    def remember() -> None:
        st.session_state["painted"] = True

    _component(key="look_all", data={"image": None}, on_painted_change=remember)


_CSS = """
[class*="st-key-spot_"] {
  position: relative;
}
[class*="st-key-spot_"] [data-testid="stSkeleton"] {
  visibility: hidden;
}
[class*="st-key-look_"] {
  position: absolute;
  inset: 0;
  z-index: 1;
  pointer-events: none;
}
[class*="st-key-look_"] img {
  position: absolute;
  image-rendering: pixelated;
}
"""

_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  if (parentElement.dataset.seen) return;
  parentElement.dataset.seen = "yes";
  if (!data.image) return void requestAnimationFrame(() => setTimeout(() => setTriggerValue("painted", true)));
  const spot = parentElement.closest('[class*="st-key-spot_"]');
  const image = Object.assign(document.createElement("img"), { src: data.image, alt: "" });
  const { l, r, t, b } = data.margin;
  image.style.cssText = `left: ${l}px; top: ${t}px; width: calc(100% - ${l + r}px); height: ${data.height - t - b}px`;
  parentElement.append(image);
  new MutationObserver((_, watch) => {
    if (!spot.querySelector(".main-svg")) return;
    watch.disconnect();
    image.remove();
  }).observe(spot, { childList: true, subtree: true });
}
"""

_component = st.components.v2.component("sparselens_first_look", css=_CSS, js=_JS, isolate_styles=False)
