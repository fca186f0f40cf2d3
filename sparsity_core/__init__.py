"""SparseLens, the library: run a decoder model through pruning methods and see what each one throws away."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparsity_core import methods
from sparsity_core.method import Pipeline
from sparsity_core.trace import Trace

if TYPE_CHECKING:
    from sparsity_core.models import load
    from sparsity_core.run import generate, run

__all__ = ["Pipeline", "Trace", "generate", "load", "methods", "run"]


class _Package(ModuleType):
    """Importing the submodule `run` sets it as this package's attribute; the name is the function's."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.run if name == "run" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """`load`, `run` and `generate` bring torch and transformers in on first use, seconds that reading a Trace need not wait."""
    if name == "load":
        from sparsity_core.models import load

        return load
    if name in ("run", "generate"):
        from sparsity_core.run import generate, run

        return {"run": run, "generate": generate}[name]
    raise AttributeError(f"sparsity_core has no {name!r}")
