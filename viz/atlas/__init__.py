"""atlas: which token each layer dropped and when; where two pipelines part."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
