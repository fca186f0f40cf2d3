"""The texts that the shipped gates were trained on: `python text.py gensim-4.3.3-….whl [--spaced] > text.txt`.

Prose of the first articles of an English Wikipedia dump (CC BY-SA) that gensim's wheels carry for their tests, and after it the
library's calibration text. `--spaced` writes every second article as WikiText spaces its text (" , ", " @-@ "). The wheel
comes from `pip download --no-deps gensim==4.3.3`.
"""

from __future__ import annotations

import bz2
import html
import re
import sys
import zipfile
from pathlib import Path

from sparsity_core.models import calibration_text

_DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_ARTICLE = re.compile(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", re.DOTALL)
_REMOVED = (
    r"<!--.*?-->",
    r"<ref[^>]*/>",
    r"<ref.*?</ref>",
    r"<(math|gallery|timeline|source|pre|table|imagemap)[^>]*>.*?</\1>",
)
_LAST = "references|external links|see also|further reading|notes|bibliography|footnotes|sources".split("|")


def wikipedia(wheel: Path, spaced: bool) -> str:
    with zipfile.ZipFile(wheel) as archive:
        dump = bz2.decompress(archive.read(_DUMP)).decode("utf-8", "replace")
    articles: list[str] = []
    for title, marked in _ARTICLE.findall(dump):
        prose = _prose(html.unescape(html.unescape(marked)))
        if "#REDIRECT" not in marked.upper()[:30] and len(prose) > 1500:
            article = f"{html.unescape(title)}\n{prose}"
            articles.append(_spaced(article) if spaced and len(articles) % 2 else article)
    return "\n".join(line for line in "\n\n".join(articles).split("\n") if not line.startswith("[["))


def _prose(text: str) -> str:
    """The paragraphs and headings of an article's wikitext, up to its references."""
    for pattern in _REMOVED:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    for _ in range(8):  # templates and tables within each other
        text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", text)
    for _ in range(3):
        text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*\]\]", "", text)
    text = re.sub(r"\[\[[^\[\]|]*\|([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\[([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ([^\]]*)\]", r"\1", text)
    text = re.sub(r"\[?https?://\S+\]?", "", text)
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"<[^>]+>", "", text)
    kept = []
    for line in map(str.strip, text.split("\n")):
        heading = re.match(r"^(=+)\s*(.*?)\s*=+$", line)
        if heading and heading[2].lower() in _LAST:
            break
        if heading:
            kept.append(heading[2])
        elif len(line) >= 40 and line[0] not in "|!{}*#:;":
            kept.append(line)
    return "\n".join(kept)


def _spaced(article: str) -> str:
    """An article with its punctuation set apart, inner marks between @, and headings between equals signs."""
    lines = []
    for depth, line in enumerate(article.split("\n")):
        for pattern, between in ((r"(\d),(?=\d)", "@,@"), (r"(\d)\.(?=\d)", "@.@"), (r"(\w)-(?=\w)", "@-@")):
            line = re.sub(pattern, rf"\1 {between} ", line)
        line = re.sub(r"(?<!@)([,.;:!?()\"])(?!@)", r" \1 ", line)
        line = re.sub(r"(\w)'(\w)", r"\1 '\2", line)
        line = " ".join(line.split())
        if len(line) < 40 and not line.endswith("."):
            sign = "=" if depth == 0 else "= ="
            line = f"\n {sign} {line} {sign} \n"
        lines.append(f" {line} ")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{wikipedia(Path(sys.argv[1]), '--spaced' in sys.argv)}\n\n{calibration_text()}")
