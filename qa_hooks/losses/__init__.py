"""Losses to add to a training loop: full-reference ones, and any scorer turned into something to minimise.

    loss = weight * sum_i w_i l_i / N          w: optional per-sample weights

A loss always returns something to minimise; the sign of a score is applied in `ScoreLoss` and nowhere else.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
