"""Text that Streamlit draws too faint, at 4.5 to 1 and more on its ground (WCAG AA). The accent colours are in config.toml."""

from __future__ import annotations

import streamlit as st


def raise_contrast() -> None:
    """Draws nothing and takes no room; its style sheet is the page's."""
    _component(key="contrast")


_CSS = """
.st-key-contrast {
  position: absolute;
}
[data-testid="stCaptionContainer"] {
  color: inherit;
  opacity: 0.85;
}
"""

_component = st.components.v2.component("sparselens_contrast", css=_CSS, isolate_styles=False)
