"""What still has to be done when Python ends and nobody has closed an object."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable


def at_exit(method: Callable[[], None]) -> None:
    """Call an object's method when Python ends, if the object is still there; not in a forked child.

    Example:
        >>> class Log:
        ...     def finish(self):
        ...         print("finished")
        >>> log = Log()
        >>> at_exit(log.finish)
        >>> _call(weakref.WeakMethod(log.finish), os.getpid())
        finished
    """
    atexit.register(_call, weakref.WeakMethod(method), os.getpid())


def crashed() -> bool:
    """Whether Python ends because of an error or Ctrl-C that nobody caught; it has been told by then."""
    return getattr(sys, "last_value", None) is not None


def _call(reference: weakref.WeakMethod[Callable[[], None]], process: int) -> None:
    method = reference()
    if method is not None and os.getpid() == process:
        method()
