"""Makes the traces that ship with the library, with which the pages open: `python -m ui.bundle` (`make assets`)."""

from __future__ import annotations

from dataclasses import replace

from sparsity_core.run import execute
from sparsity_core.store import Store, key_of
from ui.session import EXAMPLE
from ui.sweeps import sweep_specs

BESIDE = replace(EXAMPLE, pipeline="eviction=streaming_llm(budget=64)")


def bundled_specs() -> list:
    """What opens without a model: the example, the method that stands beside it first, and the example's sweep."""
    return [EXAMPLE, BESIDE, *(sweep_specs(EXAMPLE) or {}).values()]


def main() -> None:
    folder = Store().assets
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{key_of(spec)}.npz": spec for spec in bundled_specs()}
    for path in folder.glob("*.npz"):
        path.unlink()
    for name, spec in wanted.items():
        trace = execute(spec)
        trace.save(folder / name)
        print(f"{name}  {(folder / name).stat().st_size / 1024:6.0f} KiB  {spec.pipeline}  generate={spec.generate}")


if __name__ == "__main__":
    main()
