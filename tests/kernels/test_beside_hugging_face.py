"""Hugging Face's package `kernels` beside the folder of that name: both import orders work, with each kind of theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers.integrations.hub_kernels as asks

ROOT = Path(__file__).parents[2]
SCRIPT = """
import kernels, sys
first = kernels.__file__
import sparselens_kernels
import transformers.integrations.hub_kernels
from sparsity_core import Pipeline, load, run
from tests import tiny
trace = run(tiny.model(), tiny.TEXT, Pipeline.parse("eviction=a2sf(budget=8)"))
print(first, sparselens_kernels.__file__, trace.n_tokens, transformers.utils.import_utils.is_kernels_available())
"""


def stand_in(folder: Path, version: str) -> Path:
    """A distribution `kernels` with every name that transformers takes from it."""
    wanted = re.findall(r"from kernels import (\([^)]*\)|[^\n]*)", Path(asks.__file__).read_text())
    names = {name.split(" as ")[0].strip() for part in wanted for name in part.strip("()").split(",") if name.strip()}
    assert "LayerRepository" in names
    package = folder / "kernels"
    package.mkdir(parents=True)
    named = sorted(names) if version >= "0.18.2" else []
    lines = [f"class {name}:\n    def __init__(self, *args, **named): ..." for name in named if name[0].isupper()]
    lines += [f"def {name}(*args, **named):\n    return lambda cls: cls" for name in named if not name[0].isupper()]
    (package / "__init__.py").write_text("\n".join(lines) + "\n")
    about = folder / f"kernels-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (about / "RECORD").write_text("kernels/__init__.py,,\n")
    return folder


@pytest.mark.parametrize("version", ["0.17.2", "0.18.2"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_both_packages_are_found_in_either_order(tmp_path, version, place):
    theirs = str(stand_in(tmp_path, version))
    ours = [str(ROOT), str(ROOT / "kernels")]
    path = os.pathsep.join([theirs, *ours] if place == "first" else [*ours, theirs])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path.parent,
        env={**os.environ, "PYTHONPATH": path, "USE_HUB_KERNELS": "YES"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, own, tokens, available = done.stdout.split()
    assert first == f"{theirs}/kernels/__init__.py"
    assert own == str(ROOT / "kernels" / "sparselens_kernels" / "__init__.py")
    assert int(tokens) > 8 and available == str(version == "0.18.2")


def test_the_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
