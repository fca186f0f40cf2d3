"""inference: run and generate: a text through a model under a pipeline, as a trace."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
