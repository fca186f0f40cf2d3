"""SparseLens, the library: run a decoder model through pruning methods and see what each one throws away."""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("sparselens")
except PackageNotFoundError:  # a clone that was never installed
    __version__ = "0+unknown"
