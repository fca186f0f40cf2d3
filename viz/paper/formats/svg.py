"""SVG: in inches, described, with heatmap cells that stay sharp. The program that shows it brings the fonts."""

from __future__ import annotations

import base64
import html
import io
import math
import re

from PIL import Image

from sparsity_core.record import Provenance
from viz.paper.browser import render
from viz.paper.sheet import Format, Sheet
from viz.text import printable
from viz.theme import PX_PER_INCH

_ATTRIBUTE = re.compile(r'\s+[\w:.-]+="[^"]*"')
_TAG = re.compile(rf"<([\w:]+)((?:{_ATTRIBUTE.pattern})+)\s*(/?)>")


def _write(sheet: Sheet) -> bytes:
    drawing = drawn_svg(sheet)
    at = drawing.index(">") + 1
    return (drawing[:at] + about(sheet.provenance) + drawing[at:]).encode()


def drawn_svg(sheet: Sheet, name: str = "figure", place: str = "") -> str:
    """The SVG in inches (a pixel is 1/96 inch in some programs and 1/72 in others), with sharp cells.

    name: what the ids within begin with, and place: further attributes, where it is to be a part of another SVG.
    """
    text = render(sheet, "svg").decode()
    text = re.sub(r'xlink:href="data:image/png;base64,([^"]+)"', lambda m: f'xlink:href="{_sharp_png(m[1])}"', text)
    text = _without_chance(text, name)
    opening, drawing = text[: text.index(">") + 1], text[text.index(">") + 1 :]
    for side, value in (("width", f"{sheet.width:g}in"), ("height", f"{sheet.height:g}in")):
        opening = re.sub(rf'\s{side}="[^"]*"', f' {side}="{value}"', opening, count=1)
    box = f' viewBox="0 0 {sheet.width * PX_PER_INCH:.6g} {sheet.height * PX_PER_INCH:.6g}"{place}'
    return re.sub(r'\sviewBox="[^"]*"', box, opening, count=1) + drawing


def about(provenance: Provenance) -> str:
    """Title, description and record, as they stand at the beginning of a file."""
    record, caption = html.escape(provenance.to_json()), html.escape(printable(provenance.caption))
    fields = html.escape(printable("\n".join(f"{key}: {value}" for key, value in provenance.fields.items())))
    return f"<title>{caption}</title><desc>{fields}</desc><metadata>{record}</metadata>"


def _without_chance(text: str, name: str) -> str:
    """Equal figures are to be equal files.

    Plotly draws six hexadecimal digits for the names within a drawing, and the first legend that a page of the browser draws
    has its attributes in another order than later ones.
    """
    drawn = re.search(r'id="defs-([0-9a-f]{6})"', text)
    return _TAG.sub(_ordered, text.replace(drawn[1], name) if drawn else text)


def _ordered(tag: re.Match[str]) -> str:
    return f"<{tag[1]}{''.join(sorted(_ATTRIBUTE.findall(tag[2])))}{tag[3]}>"


def _sharp_png(encoded: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    across, down = (max(1, math.ceil(1000 / size)) for size in image.size)
    out = io.BytesIO()
    image.resize((image.width * across, image.height * down), Image.Resampling.NEAREST).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


FORMAT = Format("svg", "image/svg+xml", place=2, write=_write, rendered=True)
