"""SparseLens, the library: run a decoder model through pruning methods and see what each one throws away."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"  # the one place that names it: pyproject.toml reads it from here
