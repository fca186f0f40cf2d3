"""A page of HTML holds text as text and loads nothing."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest

from sparsity_core.record import Provenance
from tests.viz.paper.nasty import NASTY, PROVENANCE
from viz import paper
from viz.text import plain


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._script = tag in ("script", "style")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._script else data


@pytest.mark.parametrize("escaped_by_author", [True, False])
def test_html_holds_user_text_only_escaped(tokens: go.Figure, table: pd.DataFrame, escaped_by_author: bool) -> None:
    figure = tokens if escaped_by_author else go.Figure(go.Bar(x=NASTY, y=list(range(len(NASTY)))))
    page = _Page(paper.export(figure, table, "html", PROVENANCE).decode())
    empty = _Page(paper.export(go.Figure(), table.iloc[:0], "html", Provenance.of_fields("c", {})).decode())
    assert page.tags.count("script") == empty.tags.count("script")
    assert "img" not in page.tags
    assert not page.handlers
    assert PROVENANCE.caption in page.text
    assert PROVENANCE.fields["command"] in page.text


def test_html_loads_nothing_and_typesets_no_math(tokens: go.Figure, table: pd.DataFrame) -> None:
    text = paper.export(tokens, table, "html", PROVENANCE).decode()
    page = _Page(text)
    assert [link[:5] for link in page.loads] == ["data:"]
    assert "default-src 'none'" in text
    assert '"typesetMath": false' in text
    assert "mathjax" not in "".join(page.loads).lower()


def test_plain_text_means_nothing_to_plotly() -> None:
    assert plain("<b>$x$</b> & %{y}") == "&lt;b&gt;&#36;x&#36;&lt;/b&gt; &amp; &#37;{y}"
    assert plain("50% é שלום 😀\n") == "50% é שלום 😀\n"
    assert plain("\x00\x7f\ud800") == "\\x00\\x7f\ufffd"
