"""The server computes nothing: models, and the libraries that run them, live in the engine alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.server import ROOT, cache_with_models

VISIT = """
import sys, time
from streamlit.testing.v1 import AppTest

at = AppTest.from_file(sys.argv[1], default_timeout=120)
at.session_state["painted"] = True

def look():
    at.run()
    while at.session_state["pending"] if "pending" in at.session_state else ():
        time.sleep(0.2)
        at.run()
    wrong = [told.value for told in (*at.exception, *at.error)]
    assert not wrong, wrong
    heavy = {"torch", "transformers", "triton", "peft", "accelerate"} & set(sys.modules)
    assert not heavy, heavy

def open_page(name):
    at._page_hash = next(key for key, info in at._registered_pages.items() if info.get("url_pathname") == name)
    look()

look()
for page in ("scores", "channels", "gate", "spectra", ""):
    open_page(page)
at.text_area(key="prompt_text").set_value("One fish, two fish, red fish, blue fish, and a very old boat. " * 8).run()
at.session_state["run_settings"] = True
at.button(key="run").click()
look()
(said,) = [told.value for told in at.caption if told.value.startswith("In this server's memory")]
assert "the model loaded last (5" in said and "traces looked at last" in said, said  # 513 MB, which the engine has
open_page("scores")
next(button for button in at.button if "every step" in button.label).click()
look()
open_page("spectra")
at.selectbox(key="S_method").set_value("wanda_sp").run()  # whose ranking ships, so that the slider cuts a layer
at.select_slider(key="S_ratio").set_value(0.4)
look()
assert '"name":"D"' in "".join(chart.proto.spec for chart in at.get("plotly_chart"))
"""


def test_a_visit_to_every_page_and_work_of_every_kind_imports_no_torch_in_the_server(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("from app import main\nmain()\n")
    environment = {**os.environ, "SPARSELENS_CACHE": str(cache_with_models(tmp_path))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", VISIT, str(tmp_path / "main.py")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_work_of_jobs_needs_no_streamlit() -> None:
    names = sorted(path.stem for path in (ROOT / "ui" / "tasks").glob("[a-z]*.py"))
    assert len(names) > 3
    code = f"import sys\nfrom ui.tasks import {', '.join(names)}\nassert 'streamlit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
