"""HTML: the interactive figure with its caption, data and provenance, in one file that loads nothing."""

from __future__ import annotations

import base64
import html

import plotly.io

from viz.paper.drawing import printable_texts
from viz.paper.formats.csv import csv_bytes
from viz.paper.sheet import CREATOR, Format, Sheet
from viz.text import printable
from viz.theme import style

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:">
<title>{title}</title>
<style>
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: #fff; color: #1F2430;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }}
figure {{ margin: 0; }}
figcaption {{ margin: 1rem 0; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: 13px; }}
dt {{ color: #4B5262; }}
dd {{ margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
</style>
</head>
<body>
<figure>
{figure}
<figcaption dir="auto">{caption}</figcaption>
</figure>
<p><a download="data.csv" href="data:text/csv;charset=utf-8;base64,{csv}">The numbers behind it (CSV)</a></p>
<details open>
<summary>Where it comes from</summary>
<dl>
{fields}
</dl>
</details>
<script type="application/json" id="provenance">{record}</script>
</body>
</html>
"""


def _write(sheet: Sheet) -> bytes:
    provenance = sheet.provenance
    drawing = plotly.io.to_html(
        printable_texts(style(sheet.figure, "light").to_dict()),
        config={"typesetMath": False, "displaylogo": False, "responsive": True},
        include_plotlyjs=True,
        include_mathjax=False,
        full_html=False,
        default_height="520px",
        div_id="figure",
        validate=False,
    )
    caption = html.escape(printable(provenance.caption))
    fields = "\n".join(
        f'<dt>{html.escape(key)}</dt><dd dir="auto">{html.escape(printable(value))}</dd>'
        for key, value in provenance.fields.items()
    )
    page = _PAGE.format(
        title=caption or CREATOR,
        figure=drawing,
        caption=caption,
        csv=base64.b64encode(csv_bytes(sheet.table, provenance)).decode(),
        fields=fields,
        record=provenance.to_json().replace("<", "\\u003c"),
    )
    return page.encode()


FORMAT = Format("html", "text/html", place=4, write=_write)
