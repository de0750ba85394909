"""What a training loader reads: candidate ground truths, tables of scores, and samplers that follow them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
