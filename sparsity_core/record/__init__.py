"""record: what a run leaves: the trace and its parts, their files, and the store that finds them by spec. No torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
