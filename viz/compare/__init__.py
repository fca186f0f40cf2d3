"""compare: several pipelines on one text: what each costs, where they part, and what they decide differently."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
