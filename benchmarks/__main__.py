"""`python -m benchmarks [NAME …] [--data FOLDER]`: all of them where none is named. Results go to benchmarks/results."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.measure import machine, save

NAMES = ("kernels", "tracing", "app", "weights", "decode", "quality", "gate", "prefill", "sweep", "batch")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="the folder of evaluation texts; absent: skipped"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in options.names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").main(options.data)
        if rows:
            save(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
