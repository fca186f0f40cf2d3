"""What Streamlit's own style leaves hard to read: faint text, at 4.5 to 1 and more on its ground (WCAG AA), and columns too
narrow for their widgets. The accent colours are in config.toml."""

from __future__ import annotations

import streamlit as st

from ui.figure import theme


def raise_contrast() -> None:
    """Draws nothing and takes no room; its style sheet is the page's."""
    _component(key=f"contrast_{theme()}")


_CSS = """
[class*="st-key-contrast_"] {
  position: absolute;
}
[data-testid="stCaptionContainer"] {
  color: inherit;
  opacity: 0.85;
}
/* Streamlit writes white on the accent colour, which is light on a dark ground. */
.stApp:has(.st-key-contrast_dark) [data-testid="stBaseButton-primary"],
.stApp:has(.st-key-contrast_dark) [data-testid="stMultiSelect"] [data-tag-index],
.stApp:has(.st-key-contrast_dark) [data-testid="stMultiSelect"] [data-baseweb="tag"] {
  color: #10131a;
}
.stApp:has(.st-key-contrast_dark) [data-testid="stBaseButton-primary"]:disabled {
  background: #2b303c;
  border-color: #565d6c;
  color: #bac1ce;
}
/* Beside the sidebar, a window this wide leaves no room for two columns: they stand below one another. */
@media (max-width: 1000px) {
  [data-testid="stMain"] [data-testid="stColumn"] {
    min-width: 100%;
  }
}
"""

_component = st.components.v2.component("sparselens_contrast", css=_CSS, isolate_styles=False)
