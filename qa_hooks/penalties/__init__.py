"""Critic penalties: QAGAN's SSIM and NIQE terms (2019), and the gradient and drift penalties they stand beside.

Each penalty is one term for the critic's loss and nothing else: the adversarial term stays the user's, so either sign
convention works, and the generator's loss is not touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
