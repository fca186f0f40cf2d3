"""The text that methods are calibrated and measured on: it ships, and is the same on every machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from sparsity_core.models.texts import calibration_digest, calibration_text, evaluation_digest, evaluation_text
from sparsity_core.work import ASSETS

ROOT = Path(__file__).parents[2]
TEXTS = ASSETS / "texts"


def test_the_text_is_the_one_that_its_note_names():
    text = calibration_text() + evaluation_text()
    reference = text[text.index('The "assert" statement') :]  # after the library's prompts
    assert hashlib.sha256(reference.encode()).hexdigest() in (TEXTS / "README.md").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (TEXTS / "LICENSE.txt").read_text()


def test_another_version_of_python_reads_the_same_text():
    """Its own help text is another one in every version."""
    code = (
        "import sys, types\n"
        "topics = types.ModuleType('pydoc_data.topics'); topics.topics = {'assert': 'of another version'}\n"
        "sys.modules['pydoc_data.topics'] = topics\n"
        "from sparsity_core.models.texts import calibration_digest, evaluation_digest\n"
        "print(calibration_digest(), evaluation_digest(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [calibration_digest(), evaluation_digest(), "False"]


def test_what_ships_was_calibrated_on_this_text():
    recipes = [json.loads(path.read_text()) for path in (ASSETS / "channels").glob("*.json")]
    assert [recipe["text"] for recipe in recipes] == [calibration_digest()] * len(recipes) != []
