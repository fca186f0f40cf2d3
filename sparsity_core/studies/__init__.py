"""studies: what pages ask beyond a run: spectra, channels, a gate's logits. Their records need no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
