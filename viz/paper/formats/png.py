"""PNG: at the exact size and resolution, with its provenance as text chunks."""

from __future__ import annotations

import io

from PIL import Image, PngImagePlugin

from sparsity_core.record import Provenance
from viz.paper.browser import render
from viz.paper.sheet import CREATOR, Format, Sheet
from viz.theme import PX_PER_INCH

_LONG = 2000  # letters above which a text is compressed


def _write(sheet: Sheet) -> bytes:
    return described(drawn_png(sheet), sheet.provenance, PX_PER_INCH * sheet.scale)


def drawn_png(sheet: Sheet) -> Image.Image:
    """The picture at its size."""
    dpi = PX_PER_INCH * sheet.scale
    image = Image.open(io.BytesIO(render(sheet, "png", sheet.scale))).convert("RGB")
    return image.crop((0, 0, round(sheet.width * dpi), round(sheet.height * dpi)))


def described(image: Image.Image, provenance: Provenance, dpi: float) -> bytes:
    """The file of a picture, with the provenance in text chunks."""
    about = PngImagePlugin.PngInfo()
    notes = {"Title": provenance.caption, "Software": CREATOR, **provenance.fields, "provenance": provenance.to_json()}
    for key, value in notes.items():
        about.add_text(key, value.encode("utf-8", "replace").decode(), zip=len(value) > _LONG)
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=about, dpi=(dpi, dpi))
    return out.getvalue()


FORMAT = Format("png", "image/png", place=3, write=_write, rendered=True, embeds=True)
