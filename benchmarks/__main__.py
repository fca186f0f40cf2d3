"""`python -m benchmarks [kernels] [tracing] [app]`: all of them where none is named. Results go to benchmarks/results."""

from __future__ import annotations

import importlib
import sys

from benchmarks.measure import machine, save

_ALL = ("kernels", "tracing", "app")


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(_ALL))
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(_ALL)}", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in names or _ALL:
        rows = importlib.import_module(f"benchmarks.{name}").main()
        if rows:
            save(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
