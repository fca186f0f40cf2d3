"""visits: guided examples of the five lines of work, a step at a time, on what ships."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
