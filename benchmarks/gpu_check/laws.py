"""The tests of the operations, on the card in place of Triton's interpreter: one line a file, and one a failure."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_check.finding import Finding, Place

_ROOT = Path(__file__).parents[2]
_ELSEWHERE = {"test_beside_hugging_face.py", "test_compiled.py"}  # of imports and of the compiler, not of operations
_PROCESSES = 8  # each compiles its kernels on a core of its own
_SECONDS = 150


def main(place: Place) -> Iterator[Finding]:
    files = sorted(path for path in (_ROOT / "tests" / "kernels").glob("test_*.py") if path.name not in _ELSEWHERE)
    wanted = [_ROOT / "tests" / "kernels" / "test_sparse_decode.py"] if place.toy else files
    spread = importlib.util.find_spec("xdist") is not None and (os.cpu_count() or 1) >= _PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "laws.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-n", str(_PROCESSES)] if spread else []
        command += ["-k", "label"] if place.toy else []
        done = subprocess.run(
            [*command, *map(str, wanted)], cwd=_ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
        if not report.exists():
            yield Finding("tests/kernels", False, note=f"pytest ended with {done.returncode} and no report")
            return
        yield from _told(report)


def _told(report: Path) -> Iterator[Finding]:
    """Reads pytest's report."""
    counts: dict[str, Counter[str]] = {}
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").rpartition(".")[2]
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        outcome = "failed" if problem is not None else "skipped" if case.find("skipped") is not None else "passed"
        counts.setdefault(module, Counter())[outcome] += 1
        if problem is not None:
            failed.append((f"{module}::{case.get('name')}", " ".join(problem.get("message", "").split())[:300]))
    for module, count in sorted(counts.items()):
        note = ", ".join(f"{n} {outcome}" for outcome, n in sorted(count.items()))
        yield Finding(f"tests/kernels/{module}.py", not count["failed"], note=note)
    if not counts:
        yield Finding("tests/kernels", False, note="pytest found no test")
    for name, message in failed:
        yield Finding(name, False, note=message)
