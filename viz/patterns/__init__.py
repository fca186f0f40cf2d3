"""patterns: which keys a prompt's queries see, where the attention lies, and what that costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
