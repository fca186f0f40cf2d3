"""Which pipeline keeps the model's behaviour, at how many bytes, where do they part, and is the difference real?"""

from __future__ import annotations

import streamlit as st

from ui import compare as ui
from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.page import Page
from ui.session import Shown
from ui.tokens import strip_of
from ui.view import View

PAGE = Page("Compare", ":material/compare_arrows:", order=2)


def page(shown: list[Shown], at: View) -> None:
    if len(shown) == 1:
        st.info("One pipeline is shown. Add others in the sidebar, or take a whole list there, and press Run.")
    st.subheader("Quality against realised bytes", anchor=False)
    ui.quality(shown)
    ui.many_texts(shown)
    ui.haystack(shown, at)
    ui.generations(shown, at)
    ui.kl(shown, at)
    ui.contested(shown, at)
    ui.agreement(shown, at)
    ui.spans(shown, at)
    st.subheader(f"Tokens at step {at.step}, layer {at.layer}", anchor=False)
    for item in shown:
        strip_of(item, shown, at)
    explain_methods(shown)


if __name__ == "__main__":
    start_from_app()
