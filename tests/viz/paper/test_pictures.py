"""Paper export: what a reviewer or a LaTeX run would find in the file, read back by other programs than wrote it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image
from pypdf import PdfReader

from sparsity_core.record import Provenance
from tests.viz.paper.nasty import NASTY, PROVENANCE
from viz import paper
from viz.paper import browser as browser_module
from viz.paper import compat
from viz.text import plain
from viz.theme import style

ROOT = Path(__file__).parents[3]


def test_a_legend_of_several_lines_adds_its_height_and_a_low_figure_stays_low() -> None:
    one = go.Figure([go.Scatter(y=[1], name="short")]).update_layout(showlegend=True)
    many = go.Figure([go.Scatter(y=[1], name=f"a pipeline with a long name {i}") for i in range(6)])
    assert paper.natural_height(one, 3.25) == pytest.approx(0.62 * 3.25)
    assert paper.natural_height(one, 3.25, shape=0.33) == pytest.approx(0.33 * 3.25)
    # a line of 7 pt text takes 1.6 × 7 / 72 inches; six names stand below one another
    assert paper.natural_height(many, 3.25) == pytest.approx(0.62 * 3.25 + 5 * 1.6 * 7 / 72)


@pytest.mark.parametrize(
    ("fmt", "size"),
    [
        ("gif", {}),
        ("pdf", {"width": 0}),
        ("pdf", {"width": float("nan")}),
        ("png", {"scale": 0}),
        ("svg", {"height": 99}),
    ],
)
def test_bad_requests_are_refused_before_a_browser_starts(
    table: pd.DataFrame, fmt: str, size: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="allowed"):
        paper.export(go.Figure(), table, fmt, PROVENANCE, **size)


def test_provenance_refuses_keys_that_no_container_holds() -> None:
    with pytest.raises(ValueError, match="provenance key"):
        Provenance.of_fields("c", {"a\nb": "x"})
    with pytest.raises(ValueError, match="give it as text"):
        Provenance.of_fields("c", {"seed": 0})  # type: ignore[dict-item]


def test_without_a_browser_pictures_say_so_and_html_and_csv_work(
    monkeypatch: pytest.MonkeyPatch, heatmap: go.Figure, table: pd.DataFrame
) -> None:
    monkeypatch.setattr(browser_module, "_renderer", browser_module.Renderer())
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent/chromium")
    assert not paper.can_render()
    for fmt in ("pdf", "svg", "png"):
        with pytest.raises(paper.NoBrowser, match="install Chromium, or download HTML or CSV"):
            paper.export(heatmap, table, fmt, PROVENANCE)
    assert paper.export(heatmap, table, "html", PROVENANCE)
    assert paper.export(heatmap, table, "csv", PROVENANCE)


def test_a_browser_that_does_not_start_is_named(
    monkeypatch: pytest.MonkeyPatch, heatmap: go.Figure, table: pd.DataFrame
) -> None:
    monkeypatch.setattr(browser_module, "_renderer", browser_module.Renderer())
    monkeypatch.setattr(compat, "browser_path", lambda: "/bin/false")
    with pytest.raises(paper.NoBrowser, match=r"/bin/false does not start.* set BROWSER_PATH"):
        paper.export(heatmap, table, "pdf", PROVENANCE)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/scratch/" + "x" * 60)
    with pytest.raises(paper.NoBrowser, match="set TMPDIR to a folder with a name of less than 60 characters"):
        paper.export(heatmap, table, "pdf", PROVENANCE)


def _pdf(data: bytes) -> PdfReader:
    return PdfReader(io.BytesIO(data), strict=True)


@pytest.mark.parametrize(
    ("venue", "columns", "points"), [("icml", 1, 234), ("aaai", 1, 238.5), ("aaai", 2, 504), ("cvpr", 1, 236.25)]
)
def test_pdf_page_has_the_exact_width_of_the_venue(
    browser: None, heatmap: go.Figure, table: pd.DataFrame, venue: str, columns: int, points: float
) -> None:
    width = paper.venue_width(venue, columns)
    reader = _pdf(paper.export(heatmap, table, "pdf", PROVENANCE, width=width, height=2))
    assert len(reader.pages) == 1
    for box in (reader.pages[0].mediabox, reader.pages[0].cropbox):
        assert [float(side) for side in box] == pytest.approx([0, 0, points, 144], abs=1e-6)


def test_pdf_text_is_7_and_8_points_on_the_page(browser: None, heatmap: go.Figure, table: pd.DataFrame) -> None:
    page = _pdf(paper.export(heatmap, table, "pdf", PROVENANCE, width=3.3, height=2)).pages[0]
    sizes: dict[str, float] = {}

    def visit(text: str, cm: list[float], tm: list[float], font: object, size: float) -> None:
        for word in text.split():
            sizes[word] = size * abs(np.linalg.det(np.reshape(cm[:4], (2, 2)))) ** 0.5 * np.hypot(tm[2], tm[3])

    page.extract_text(visitor_text=visit)
    assert sizes["key"] == pytest.approx(8, rel=0.005)
    assert sizes["10"] == pytest.approx(7, rel=0.005)
    assert "On-screen" not in page.extract_text()


def test_pdf_embeds_its_fonts_as_truetype(browser: None, tokens: go.Figure, table: pd.DataFrame) -> None:
    page = _pdf(paper.export(tokens, table, "pdf", PROVENANCE)).pages[0]
    fonts = [font.get_object()["/DescendantFonts"][0].get_object() for font in page["/Resources"]["/Font"].values()]
    assert fonts
    for font in fonts:
        assert font["/Subtype"] == "/CIDFontType2"
        assert "/FontFile2" in font["/FontDescriptor"]


def test_pdf_says_where_it_comes_from_and_carries_its_table(
    browser: None, heatmap: go.Figure, table: pd.DataFrame
) -> None:
    data = paper.export(heatmap, table, "pdf", PROVENANCE)
    reader = _pdf(data)
    assert reader.metadata.title == PROVENANCE.caption
    assert reader.metadata.creator == "SparseLens"
    assert reader.metadata["/prompt hash"] == "9f86d081"
    assert "pipeline: eviction=a2sf(budget=64)" in reader.metadata["/Keywords"]
    assert json.loads(reader.attachments["provenance.json"][0])["fields"] == PROVENANCE.fields
    pd.testing.assert_frame_equal(paper.read_csv(reader.attachments["data.csv"][0]), table)
    provenance, same = paper.read_pdf(data)
    assert provenance == PROVENANCE
    pd.testing.assert_frame_equal(same, table)


def test_pdf_describes_its_figure_to_screen_readers(browser: None, heatmap: go.Figure, table: pd.DataFrame) -> None:
    reader = _pdf(paper.export(heatmap, table, "pdf", PROVENANCE))
    objects = [reader.get_object(i) for i in range(1, reader.trailer["/Size"])]
    figures = [o for o in objects if isinstance(o, dict) and o.get("/S") == "/Figure"]
    assert figures
    assert all(figure["/Alt"] == PROVENANCE.caption for figure in figures)


def test_pdf_heatmap_cells_are_repeated_and_holes_stay_open(
    browser: None, heatmap: go.Figure, table: pd.DataFrame
) -> None:
    page = _pdf(paper.export(heatmap, table, "pdf", PROVENANCE, width=3.25, height=2)).pages[0]
    (image,) = [
        i.get_object() for i in page["/Resources"]["/XObject"].values() if i.get_object()["/Subtype"] == "/Image"
    ]
    mask = image["/SMask"].get_object()
    for stream, channels in ((image, 3), (mask, 1)):
        assert stream["/Width"] >= 300 * 3.25
        assert stream["/Width"] % 12 == stream["/Height"] % 5 == 0
        assert len(stream.get_data()) == stream["/Width"] * stream["/Height"] * channels
    opaque = np.frombuffer(mask.get_data(), np.uint8).reshape(5, mask["/Height"] // 5, 12, mask["/Width"] // 12)
    cells = opaque.max(axis=(1, 3))
    assert (cells == opaque.min(axis=(1, 3))).all()
    assert (cells == 0).sum() == 6
    assert (cells == 255).sum() == 54


def test_read_pdf_refuses_other_files(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="export it again"):
        paper.read_pdf(b"%PDF-1.4 nothing")
    with pytest.raises(ValueError, match="export it again"):
        paper.read_pdf(b"")


def test_png_has_the_exact_size_resolution_and_text(browser: None, heatmap: go.Figure, table: pd.DataFrame) -> None:
    image = Image.open(io.BytesIO(paper.export(heatmap, table, "png", PROVENANCE, width=3.3, height=2, scale=4)))
    assert image.size == (round(3.3 * 96 * 4), 2 * 96 * 4)
    assert image.info["dpi"] == pytest.approx((384, 384), abs=0.1)
    assert image.text["Title"] == PROVENANCE.caption
    assert image.text["model"] == "smollm2-135m"
    assert Provenance.from_json(image.text["provenance"]) == PROVENANCE


@pytest.mark.parametrize("screen", ["light", "dark"])
def test_png_ground_is_white_whatever_the_screen(
    browser: None, foreign_default: None, heatmap: go.Figure, table: pd.DataFrame, screen: str
) -> None:
    data = paper.export(style(heatmap, screen), table, "png", PROVENANCE, width=2, height=1.5, scale=1)
    assert Image.open(io.BytesIO(data)).getpixel((1, 1)) == (255, 255, 255)


def test_svg_is_xml_in_inches_with_its_provenance(browser: None, tokens: go.Figure, table: pd.DataFrame) -> None:
    root = ElementTree.fromstring(paper.export(tokens, table, "svg", PROVENANCE, width=6.975, height=3))
    svg = "{http://www.w3.org/2000/svg}"
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("6.975in", "3in", "0 0 669.6 288")
    assert root.findtext(f"{svg}title") == PROVENANCE.caption
    assert "command: sparselens" in root.findtext(f"{svg}desc")
    assert Provenance.from_json(root.findtext(f"{svg}metadata")) == PROVENANCE
    assert not list(root.iter(f"{svg}script"))


def test_labels_show_tokens_as_they_are(browser: None, table: pd.DataFrame) -> None:
    shown = ["<b>a</b>", "$x$", "$\\alpha$", "%{y}", "&amp;", "שלום", "<script>alert(1)</script>", "\\x00"]
    labels = [plain(text) for text in [*shown[:-1], "\x00"]]
    figure = go.Figure(go.Bar(y=labels, x=list(range(len(labels))), orientation="h"))
    root = ElementTree.fromstring(paper.export(figure, table, "svg", PROVENANCE, height=4))
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= set(shown)


def test_text_that_nobody_escaped_breaks_no_picture(browser: None, table: pd.DataFrame) -> None:
    figure = go.Figure(go.Bar(x=np.array(NASTY, dtype=object), y=list(range(len(NASTY)))))
    figure.update_layout(xaxis_title="$E = mc^2$ \x00")
    root = ElementTree.fromstring(paper.export(figure, table, "svg", PROVENANCE))
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "$E = mc^2$ \\x00" in texts
    assert len(_pdf(paper.export(figure, table, "pdf", PROVENANCE)).pages) == 1


def test_selection_layers_are_left_out_of_pictures(browser: None, heatmap: go.Figure, table: pd.DataFrame) -> None:
    before = paper.export(heatmap, table, "svg", PROVENANCE)
    heatmap.add_scatter(x=[0, 1], y=[0, 1], mode="markers", marker={"opacity": 0, "symbol": "square"})
    after = paper.export(heatmap, table, "svg", PROVENANCE)
    assert after.count(b"<path") == before.count(b"<path")


def test_a_figure_leaves_nothing_behind_for_the_next(
    browser: None, heatmap: go.Figure, tokens: go.Figure, table: pd.DataFrame
) -> None:
    for form in ("svg", "png"):
        first = paper.export(heatmap, table, form, PROVENANCE)
        for other in ("pdf", "svg", "png"):
            paper.export(tokens, table, other, PROVENANCE, width=2, height=1)
        assert paper.export(heatmap, table, form, PROVENANCE) == first


def test_threads_export_each_their_own_figure(browser: None, table: pd.DataFrame) -> None:
    done: dict[int, bytes] = {}

    def work(i: int) -> None:
        figure = go.Figure(go.Bar(y=[i])).update_layout(xaxis_title=f"figure {i}")
        done[i] = paper.export(figure, table, "svg", PROVENANCE, width=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 1, 2, 3]
    for i, data in done.items():
        assert f"figure {i}".encode() in data


def test_a_killed_browser_is_replaced_and_exit_is_silent(browser: None) -> None:
    code = (
        "import os, threading, pandas, plotly.graph_objects as go\n"
        "from sparsity_core.record import Provenance\nfrom viz import paper\nfrom viz.paper import browser\n"
        "def draw(): return paper.export(go.Figure(), pandas.DataFrame({'a': [1]}), 'svg', Provenance(caption='c'))\n"
        "thread = threading.Thread(target=draw); thread.start(); thread.join()\n"
        "os.kill(browser._renderer._running.kaleido.subprocess.pid, 9)\n"
        "print(draw()[:4].decode(), browser._renderer._running.kaleido.subprocess.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    drawn, pid = done.stdout.split()
    assert drawn == "<svg"
    assert not Path(f"/proc/{pid}").exists()
