"""A command that is shown can be pasted, whatever its values hold, and is spelled in one place."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sparsity_core.record import command_line

ROOT = Path(__file__).parents[2]


def test_a_command_by_hand():
    asked = {"max_new_tokens": 4, "gamma": 0.30, "steps": 1_234_567, "distil": False, "offload": True, "start": None}
    assert command_line("train dcp", **asked) == (
        "sparselens train dcp --max-new-tokens 4 --gamma 0.3 --steps 1234567 --no-distil --offload"
    )


def test_a_shell_reads_each_value_as_it_is():
    hostile = ["$(touch ran)", "`touch ran`", '"; touch ran; "', "'; touch ran; '", "x\ntouch ran", "", "é 🙂"]
    for value in hostile:
        assert shlex.split(command_line("run", model=value)) == ["sparselens", "run", "--model", value]


def test_no_other_file_spells_a_command():
    for folder in ("ui", "viz", "pages", "sparsity_core"):
        for path in (ROOT / folder).rglob("*.py"):
            if "cli" not in path.parts and path.name not in ("command.py", "__main__.py"):
                assert not re.search(r"-m sparsity_core [a-z]|sparselens [a-z]+ --", path.read_text()), path
