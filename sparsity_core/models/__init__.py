"""models: loading a decoder model and reading its parts: prompts, texts, losses, and the attention hook."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
