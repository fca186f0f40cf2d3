"""gate: which token dropped which, what a gate thinks of a pair, what kinds of tokens go, and what it costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
