"""Whether a score can be a reward (checks before training), and whether it is exploited (alarms during training)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
