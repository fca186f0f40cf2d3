"""viz: figures. x_table(trace) makes a table, plot_x(table) draws it, `style` gives it a theme, `paper` makes files of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
