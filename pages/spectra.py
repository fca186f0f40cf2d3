"""What does cutting neurons do to the spectrum, and what does it cost?"""

from __future__ import annotations

import streamlit as st

from ui import spectra as ui
from ui.entry import start_from_app
from ui.explain import explain_method
from ui.page import Page
from ui.weights import take_away

PAGE = Page("Spectra", ":material/equalizer:", needs="model", order=7, link=ui.spectra_link, explains="weights")


def page() -> None:
    spec = ui.current_spec()
    uncut = ui.offer_measuring(spec)
    choice = ui.choose(spec, uncut) if uncut is not None else None
    if choice is None:
        return
    study = ui.study_of(choice.who, choice.method)
    kept = ui.spectrum(choice, study)
    ui.distances(choice, study)
    ui.neurons(choice, kept)
    ui.policy_training(choice)
    ui.comparison(choice)
    st.subheader("Take the pruned model with you", anchor=False)
    take_away(choice)
    explain_method(choice.method)


if __name__ == "__main__":
    start_from_app()
