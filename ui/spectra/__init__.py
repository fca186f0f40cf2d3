"""spectra: what the Spectra page looks at, what is known of it, the work that makes it known, and its figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
