"""`python -m benchmarks.gpu_check [SECTION …]`: one table, pass or fail, and a result file to send.

The file goes to $OUT, or to benchmarks/results. `--device cpu --toy` tries the check itself where there is no card.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.finding import Finding, Place
from benchmarks.measure import RESULTS, machine

_ROOT = Path(__file__).parents[2]
_SECTIONS = {  # the most seconds of each; what is right comes before what is fast
    "shapes": ("the operations at real shapes, against float64", 120),
    "models": ("the card as the CPU, generated as run", 90),
    "laws": ("the tests of the operations, on the card", 120),
    "decode": ("a decode step against dense SDPA", 60),
    "trace": ("what recording costs", 60),
    "offload": ("a cache in host memory", 120),
    "prefill": ("blocks of keys against causal SDPA", 90),
    "prompts": ("prompts that see some keys, the card as the CPU", 90),
    "embedded": ("the embedded model, the card as the CPU", 180),
}
_MARK = "FINDING "


def main(arguments: list[str]) -> int:
    options = _parsed(arguments)
    if options.worker:
        return _work(options.worker, Place(torch.device(options.device), options.toy))
    about = _about(options)
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    file = Path(os.environ.get("OUT", RESULTS)) / f"gpu-check-{_label(about)}.json"
    began, failed, told = time.monotonic(), 0, dict[str, Any]()
    for name in options.sections or _SECTIONS:
        said, most = _SECTIONS[name]
        left = options.seconds - (time.monotonic() - began)
        print(f"\n{name}: {said}", flush=True)
        found, started = [], time.monotonic()
        for finding in _section(name, min(most, left), options):
            print(finding, flush=True)
            found.append(finding)
        failed += sum(finding.passed is False for finding in found)
        took = time.monotonic() - started
        print(f"  ({took:.0f} s)", flush=True)
        told[name] = {"about": said, "seconds": round(took, 1), "findings": [asdict(finding) for finding in found]}
        if not options.toy:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"machine": about, "failed": failed, "sections": told}, indent=1) + "\n")
    checked = sum(f["passed"] is not None for part in told.values() for f in part["findings"])
    print(f"\n{checked - failed} of {checked} checks passed in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(_SECTIONS)}; all where none")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --toy")
    parser.add_argument("--toy", action="store_true", help="small sizes, and no result file")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all sections together (600)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sections) - set(_SECTIONS))
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(_SECTIONS)}")
    if options.device == "cpu" and not options.toy:
        parser.error("a CPU only tries the check out: add --toy")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device that PyTorch sees: --device cpu --toy tries the check out")
    return options


def _about(options: argparse.Namespace) -> dict[str, str]:
    import transformers
    import triton

    versions = {
        "python": platform.python_version(),
        "triton": triton.__version__,
        "transformers": transformers.__version__,
    }
    about = {**machine(), **versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if options.device == "cpu":
        return about
    found = torch.cuda.get_device_properties(0)
    card = f"sm_{found.major}{found.minor}, {found.multi_processor_count} multiprocessors, {found.total_memory / 2**30:.0f} GiB"
    return {**about, "card": card, "cuda": str(torch.version.cuda), "hip": str(torch.version.hip)}


def _label(about: dict[str, str]) -> str:
    return about["accelerator"].replace(" ", "-").lower()


def _section(name: str, most: float, options: argparse.Namespace) -> Iterator[Finding]:
    """What the section finds, as it comes; one failure more where its process fails or its time is over."""
    if most < 1:
        yield Finding(name, False, note="no time was left for it")
        return
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--worker", name, "--device", options.device]
    paths = [str(_ROOT), str(_ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if options.toy:
        command.append("--toy")
        environment["TRITON_INTERPRET"] = "1"
    worker = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)

    timer = threading.Timer(most, stop)
    timer.start()
    assert worker.stdout is not None
    other = []
    try:
        for line in worker.stdout:
            if line.startswith(_MARK):
                yield Finding(**json.loads(line.removeprefix(_MARK)))
            else:
                other.append(line)
    finally:
        timer.cancel()
        code = worker.wait()
        if "OUT" in os.environ:
            with Path(os.environ["OUT"], "gpu-check.log").open("a") as log:
                log.write(f"==== {name}\n" + "".join(other)[-200_000:])
    if late.is_set():
        yield Finding(name, False, note=f"stopped after {most:.0f} s")
    elif code:
        last = next((line.strip() for line in reversed(other) if line.strip()), "")
        yield Finding(name, False, note=f"its process ended with {code}: {last[:300]}")


def _work(name: str, place: Place) -> int:
    for finding in importlib.import_module(f"benchmarks.gpu_check.{name}").main(place):
        print(_MARK + json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
