"""cost: what a pipeline costs against the dense model: by layer, by head and by token."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
