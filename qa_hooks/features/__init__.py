"""Features of images: what GIQA's models, Frechet distances, precision and recall are computed in."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
