"""cli: the command line, one file a command, each found by itself in `commands/`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
