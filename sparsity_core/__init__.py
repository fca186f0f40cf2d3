"""SparseLens, the library: run a decoder model through pruning methods and see what each one throws away."""

from typing import TYPE_CHECKING, Any

from sparsity_core import methods
from sparsity_core.method import Pipeline
from sparsity_core.trace import Trace

if TYPE_CHECKING:
    from sparsity_core.models import load
    from sparsity_core.run import generate, run

__all__ = ["Pipeline", "Trace", "generate", "load", "methods", "run"]


def __getattr__(name: str) -> Any:
    """`load`, `run` and `generate` bring torch and transformers in on first use, seconds that reading a Trace need not wait."""
    if name == "load":
        from sparsity_core.models import load

        return load
    if name in ("run", "generate"):
        import importlib

        return getattr(importlib.import_module("sparsity_core.run"), name)
    raise AttributeError(f"sparsity_core has no {name!r}")
