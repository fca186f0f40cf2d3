"""Every kernel compiled ahead of time against the committed table: it compiles, fits, and multiplies where it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.backends import needs_triton

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "benchmarks" / "results" / "compiled.json").read_text())
MOST_SPILLED = 32  # bytes of a thread: eight of its registers, once a program
TENSOR_CORES = {"sm_80": {"mma"}, "sm_90": {"wgmma", "mma"}, "sm_100": {"tcgen05", "mma"}, "gfx942": {"mfma"}}
COMPILE = """
import json, sys
from dataclasses import asdict
from benchmarks.compiled import cases, compiled
target, *dtypes = sys.argv[1:]
print(json.dumps([asdict(compiled(case, target)) for case in cases() if case.dtype in dtypes]))
"""


def compiled(target: str, *dtypes: str) -> list[dict]:
    environment = os.environ | {"TRITON_INTERPRET": "0"}  # the kernels of this process are interpreted
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, target, *dtypes],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def named(row: dict) -> tuple[str, str, str]:
    return row["kernel"], row["shape"], row["dtype"]


def check(rows: list[dict]) -> None:
    assert rows
    for row in rows:
        name = " ".join(str(row[key]) for key in ("kernel", "shape", "dtype", "target"))
        assert row["spilled"] <= MOST_SPILLED, f"{name} spills {row['spilled']} bytes a thread"
        assert row["occupancy"] > 0, f"{name} does not fit: {row['shared']} bytes of shared memory"
        if row["kernel"] in ("rows", "columns", "sparse_decode", "drops") and row["dtype"] != "float32":
            assert row["products"] in TENSOR_CORES[row["target"]], f"{name} multiplies by {row['products']}"
        else:
            assert row["products"] == "fma" or row["target"] == "gfx942", f"{name} multiplies by {row['products']}"


def test_the_committed_table_has_every_kernel_for_every_target_and_all_fit():
    check(TABLE)
    kernels = {target: set(map(named, (row for row in TABLE if row["target"] == target))) for target in TENSOR_CORES}
    assert all(of == kernels["sm_90"] for of in kernels.values())


@needs_triton
def test_the_kernels_compile_for_an_h100_as_the_table_says():
    rows = compiled("sm_90", "float16", "float32")
    check(rows)
    assert {named(row) for row in rows} == {named(row) for row in TABLE if row["dtype"] != "bfloat16"}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_kernels_compile_for_other_cards(target):
    check(compiled(target, "float16", "bfloat16", "float32"))
