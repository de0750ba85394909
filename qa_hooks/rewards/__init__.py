"""May a score be a reward, and is it being fooled: checks before training, and the rule of the alarms during it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
