"""judges: whether the scores by which methods judge keys know what dropping a key does."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
