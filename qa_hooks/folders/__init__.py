"""Folders of images, scored, compared, picked from and watched: what the commands do, as functions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
