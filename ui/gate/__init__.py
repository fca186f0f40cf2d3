"""gate: the Gate page's looks at a layer, its family of runs, its training, and the figures of each."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
