"""Which channels find the keys that matter, how many keys need to be read, and what does reading fewer cost?"""

from __future__ import annotations

from ui import channels as ui
from ui.entry import start_from_app
from ui.explain import explain_method
from ui.page import Page
from ui.session import Shown
from ui.view import View

PAGE = Page("Channels", ":material/tune:", order=5, link=ui.channels_link, explains="decode")


def page(shown: list[Shown], at: View) -> None:
    item = shown[0]
    calibrated = ui.offer_calibration(item)
    if calibrated is None:
        return
    ui.tell_calibrations(shown, calibrated)
    choice = ui.choose(calibrated)
    ui.magnitudes(item, at, choice, calibrated)
    ui.statistics(item, choice, calibrated)
    ui.quality(item, choice, calibrated)
    ui.steps(shown, at, choice, calibrated)
    for each in shown:
        ui.while_running(each)
    ui.cost_curve(item, choice, calibrated)
    ui.answers(item, choice)
    explain_method(ui.method_of(choice))


if __name__ == "__main__":
    start_from_app()
