"""weights: the engines of the weights stage: feed-forward and head views, cutting, low rank, spectra, recovery, export."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
