"""kinds: what a method is: knobs, one kind a stage, the registry, the pipeline and its one spelling. No torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
