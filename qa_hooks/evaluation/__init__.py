"""What a set of images is worth: Frechet and kernel distances, precision and recall, each with an interval."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
