"""A throw-away method, command, figure and page from outside the repository are found where the repository's own are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "methods/newest_and_one.py": '''
from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import LayerShape, EvictionMethod, ScanRule, register


@register
@dataclass(frozen=True)
class NewestAndOne(EvictionMethod):
    """Keeps the newest keys and one sink."""

    source: ClassVar[str] = "example"
    equation: ClassVar[str] = "K"

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        return ScanRule(budget=budget, n_sink=1, recent=budget - 1, scored=False)
''',
    "commands/greet.py": '''
"""Say hello."""

from sparsity_core.cli import options as shared


def options(parser):
    parser.add_argument("--whom", default="world", help="who is greeted")
    shared.json_option(parser)


def answer(options):
    return {"greeted": options.whom}, f"hello {options.whom}"
''',
    "figures/survivors.py": """
import pandas as pd
import plotly.graph_objects as go


def survivors_table(trace):
    return pd.DataFrame({"layer": range(trace.n_layers), "kept": (trace.evicted_at == trace.n_tokens).mean(axis=(1, 2))})


def plot_survivors(table):
    return go.Figure(go.Bar(x=table["layer"], y=table["kept"]))
""",
}


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip())
    return folder


def as_folder(tmp_path: Path) -> dict[str, str]:
    return {"SPARSELENS_PLUGINS": str(write(tmp_path / "mine"))}


def as_package(tmp_path: Path) -> dict[str, str]:
    """What pip leaves of a package that names its modules as entry points."""
    site, package = tmp_path / "site", tmp_path / "site" / "my_package"
    write(package)
    about = site / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = []
    for name in FILES:
        kind, file = name.removesuffix(".py").split("/")
        lines += [f"[sparselens.{kind}]", f"{file} = my_package.{kind}.{file}", ""]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT), str(ROOT / "kernels")])}


@pytest.fixture(params=[as_folder, as_package])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **request.param(tmp_path)}


def call(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_command_line_has_the_method_and_the_command(environment):
    found = json.loads(call(environment, "-m", "sparsity_core", "methods", "--json"))
    assert found["newest_and_one"]["stage"] == "eviction"
    assert "greet" in call(environment, "-m", "sparsity_core", "--help")
    assert call(environment, "-m", "sparsity_core", "greet", "--whom", "you") == "hello you\n"


def test_the_run_bar_offers_the_method(environment):
    script = (
        "from streamlit.testing.v1 import AppTest\n"
        "page = 'from ui.knobs import method_picker; method_picker(\\'A\\', None)'\n"
        "at = AppTest.from_string(page, default_timeout=60).run()\n"
        "assert not at.exception, at.exception\n"
        "print(at.selectbox(key='A_method').options)"
    )
    assert "newest_and_one" in call(environment, "-c", script)


def test_the_method_is_under_the_laws(environment):
    said = call(environment, "-m", "pytest", "-q", "tests/inference/test_laws.py", "-k", "newest_and_one and budget")
    assert said.startswith("..........")  # at least ten laws, each met


def test_the_figure_is_found_and_draws_a_trace(environment):
    script = (
        "import viz\nfrom tests.traces import trace\n"
        "found = viz.figures()['survivors']\n"
        "made = trace()\n"
        "print(len(found.plot(found.table(made)).data[0].x) == made.n_layers, 'atlas' in viz.figures())"
    )
    assert call(environment, "-c", script) == "True True\n"


TAKEN = {
    "commands/run.py": (["-m", "sparsity_core", "methods"], "two commands are named run"),
    "methods/mine.py": (["-m", "sparsity_core", "methods"], "two methods are named a2sf"),
    "figures/mine.py": (["-c", "import viz; viz.figures()"], "two figures are named atlas"),
    "pages/scores.py": (["-c", "import app"], "two pages are named scores"),
}
TEXTS = {
    "commands/run.py": FILES["commands/greet.py"],
    "methods/mine.py": FILES["methods/newest_and_one.py"]
    .replace("NewestAndOne", "A2SF")
    .replace("source:", 'name: ClassVar[str] = "a2sf"\n    source:'),
    "figures/mine.py": FILES["figures/survivors.py"].replace("survivors", "atlas"),
    "pages/scores.py": "from ui.page import Page\nPAGE = Page('Mine', ':material/star:', 'run')\n\ndef page(): pass\n",
}


@pytest.mark.parametrize("file", TAKEN)
def test_a_plug_in_of_a_name_that_is_taken_is_refused_by_its_name(tmp_path, file):
    """It would take the place of ours without a word."""
    path, (command, said) = tmp_path / file, TAKEN[file]
    path.parent.mkdir()
    path.write_text(TEXTS[file].lstrip())
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "SPARSELENS_PLUGINS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (2 if "-m" in command else 1)
    assert said in done.stderr and (str(path) in done.stderr or path.stem in done.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [("import no_such_module", "cannot be imported (ModuleNotFoundError"), ("1 +", "cannot be imported (SyntaxError")],
)
def test_a_plug_in_with_a_fault_is_named(tmp_path, text, said):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "broken.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "sparsity_core", "methods"],
        cwd=ROOT,
        env={**os.environ, "SPARSELENS_PLUGINS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"the plug-in {tmp_path}/methods/broken.py {said}" in done.stderr
