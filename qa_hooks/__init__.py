"""Image-quality feedback for training loops that somebody else wrote.

A scorer gives each image a number, and every hook is a use of that number: losses (`qa_hooks.losses`), critic penalties
(`qa_hooks.penalties`), per-sample weights and the picker (`qa_hooks.weighting`), monitors (`qa_hooks.callbacks`), on
top of pure functions (`qa_hooks.functional`), features (`qa_hooks.features`) and scorers (`qa_hooks.scorers`). Names
are resolved when they are first used, so importing the package costs next to nothing; `__init__.pyi` lists them.
"""

import difflib
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _lazy(name)
    except AttributeError as error:
        if name.startswith("_"):
            raise
        close = difflib.get_close_matches(name, __all__, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise AttributeError(f"qa_hooks has no {name!r}{meant}", name=name) from error
