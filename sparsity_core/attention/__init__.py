"""attention: the engines of one attention call: the recorder that drives the stages, reads, offload, dense comparison."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
