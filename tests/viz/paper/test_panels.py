"""Several figures on one sheet: exact width, one legend where theirs are the same, everything attached."""

from __future__ import annotations

import io

import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image
from pypdf import PdfReader

from tests.viz.paper.nasty import PROVENANCE
from viz import paper
from viz.paper import panels as module


def lines(*names: str, mode: str = "lines") -> go.Figure:
    colours = {"A": "#D55E00", "B": "#0072B2"}
    return go.Figure([go.Scatter(y=[1, 2], name=n, mode=mode, line={"color": colours[n]}) for n in names])


def panel(figure: go.Figure, height: float | None = None, **table: list[float]) -> paper.Panel:
    return paper.Panel(lambda width: (figure, height), pd.DataFrame(table or {"x": [1.0]}), PROVENANCE)


def test_a_pdf_of_panels_has_the_width_its_letters_embedded_fonts_and_every_table(browser: None) -> None:
    given = [panel(lines("A", "B"), x=[1.0]), panel(lines("A", "B", mode="lines+markers"), x=[2.0]), panel(lines("A"))]
    data = paper.compose(given[:2], "pdf", width=paper.venue_width("aaai", 2))
    reader = PdfReader(io.BytesIO(data), strict=True)
    (page,) = reader.pages
    assert float(page.mediabox.width) == pytest.approx(504, abs=1e-6)
    text = page.extract_text()
    assert "(a)" in text and "(b)" in text
    assert text.split().count("A") == text.split().count("B") == 1, "the legend stands once, above both"
    forms = [form.get_object() for form in page["/Resources"]["/XObject"].values()]
    fonts = [font.get_object() for form in forms for font in form["/Resources"].get("/Font", {}).values()]
    assert len(forms) == 3 and len(fonts) >= 5, "two panels with a bold face each, and the legend"
    for font in fonts:
        assert "/FontFile2" in font["/DescendantFonts"][0].get_object()["/FontDescriptor"]
    for letter, own in zip("ab", given, strict=False):
        pd.testing.assert_frame_equal(paper.read_csv(reader.attachments[f"data-{letter}.csv"][0]), own.table)
    made = paper.read_provenance(data)
    assert made.caption == f"(a) {PROVENANCE.caption} (b) {PROVENANCE.caption}"
    assert made.pipeline == PROVENANCE.pipeline


@pytest.mark.parametrize("form", ["svg", "png"])
def test_an_svg_and_a_png_of_panels_have_the_width_and_the_record(browser: None, form: str) -> None:
    given = [panel(lines("A", "B")), panel(lines("A"))]
    data = paper.compose(given, form, width=3.25, columns=1)
    assert paper.read_provenance(data).caption.startswith("(a) ")
    if form == "png":
        image = Image.open(io.BytesIO(data))
        assert image.width / image.info["dpi"][0] == pytest.approx(3.25, abs=0.01)
    else:
        text = data.decode()
        assert 'width="3.25in"' in text[:300] and text.count("<svg") == 3 + text.count('class="main-svg"') - 2
        ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
        assert len(ids) == len(set(ids)), "two panels name the same clip or gradient"
        assert data == paper.compose(given, form, width=3.25, columns=1)


def test_a_letter_stands_in_the_plot_where_its_axis_has_no_room_for_it() -> None:
    for axis, side in (({}, "right"), ({"visible": False}, "left"), ({"showticklabels": False}, "left")):
        (letter,) = module._lettered(lines("A").update_yaxes(**axis), "b", False).layout.annotations
        assert (letter.text, letter.xanchor) == ("<b>(b)</b>", side)


def test_a_legend_is_shared_only_where_the_same_names_have_the_same_lines() -> None:
    two = lines("A", "B")
    assert module._shared_legend([two, lines("A", "B", mode="lines+markers")]) is not None
    assert module._shared_legend([two]) is None
    assert module._shared_legend([two, lines("B", "A")]) is None
    assert module._shared_legend([two, lines("A", "B").update_traces(line_color="#000000")]) is None
    assert module._shared_legend([two, go.Figure([go.Bar(y=[1], name="A"), go.Bar(y=[1], name="B")])]) is None


@pytest.mark.parametrize(
    ("count", "given", "sentence"),
    [
        (0, {}, r"1 to 12 panels, \(a\) to \(l\); got 0"),
        (200, {}, "1 to 12 panels.*got 200: take some off"),
        (1, {"width": 0}, "width is 0; allowed"),
        (4, {"width": 1, "columns": 4}, "width of one panel is 0.1375; allowed"),
        (2, {"columns": 9}, "1 to 4 columns; got 9"),
        (2, {"form": "gif"}, "pdf, svg, png; got 'gif'"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused_before_a_browser_starts(
    count: int, given: dict[str, float | str], sentence: str
) -> None:
    options = {"form": "pdf", "width": 5.5, **given}
    with pytest.raises(ValueError, match=sentence):
        paper.compose([panel(lines("A"))] * count, options.pop("form"), **options)  # type: ignore[arg-type]
