"""paper: figures as files for papers: exact width, text at final size, fonts embedded, data and provenance inside the file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
