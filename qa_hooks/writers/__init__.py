"""Where values go: TensorBoard with lines of JSON beside it, Weights & Biases, or memory; and where tags are made."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
