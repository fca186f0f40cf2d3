"""A page of a user's own, in a folder beside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.server import ROOT

MINE = '''"""What do I want to know?"""

import streamlit as st

from ui.page import Page

PAGE = Page("Mine", ":material/star:", needs="model", order=9)


def page() -> None:
    st.write("a page of my own")
'''
OPEN = """
from streamlit.testing.v1 import AppTest

at = AppTest.from_string("from app import main\\nmain()", default_timeout=120).run()
at._page_hash = next(key for key, info in at._registered_pages.items() if info.get("url_pathname") == "mine")
at.run()
assert not at.exception, at.exception
addresses = [found["url_pathname"] for found in at._registered_pages.values()]
print(addresses, at.markdown[0].value, "run" in [button.key for button in at.button])
"""


def test_a_file_with_a_page_is_a_page_of_the_app(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "mine.py").write_text(MINE)
    environment = {**os.environ, "SPARSELENS_PLUGINS": str(tmp_path), "SPARSELENS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", OPEN], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == (
        "['', 'compare', 'scores', 'gate', 'channels', 'patterns', 'spectra', 'reproduce', 'mine', 'figures'] "
        "a page of my own False"
    )
