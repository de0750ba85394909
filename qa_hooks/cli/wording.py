"""What a function calls an argument, in the words of the command line: `size=64` is `--size 64`.

Functions say in their errors and warnings which argument to give; whoever uses a command has options. The command's own
parser knows which option fills which argument, so that no message has to be written twice.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
import warnings
from typing import Any

VALUE = r"""True|False|None|-?\d+(?:\.\d+)?(?:e-?\d+)?|'[^'\n]*'|"[^"\n]*"|\([^()\n]*\)|\[[^][\n]*\]|\{[^{}\n]*\}"""
# Not inside a path, a quotation or a bracket: `(n=128)` states a fact.
ARGUMENT = re.compile(rf"""(?<![\w./=,'"(\[-])([a-z_]+)=({VALUE})?(?=\.?(?:[\s,;:)]|$))""")
FIRST = re.compile(r"([a-z_]+)(?= must )")
# Arguments that are filled by an option of another name: what is said, the option, what to say where there is one.
OTHERS = (
    ("higher_is_better=True or False", "--better", "--better higher or --better lower"),
    ("higher_is_better=True or False", "--higher-is-better", "--higher-is-better or --lower-is-better"),
    ("resume=False", "--overwrite", "--overwrite"),
    ("calibration=None", "--calibration", "--calibration none"),
    ("scorers=", "--scorer", "--scorer"),
)


def in_options(text: str, parser: argparse.ArgumentParser, *, typed: tuple[str, ...] | None = None) -> str:
    r"""A message of a function, with the options of the command for the function's arguments.

    Args:
        parser: of the command; an argument that none of its options fills stays as it is.
        typed: the words of the command line, from which names of files come; a word of these is left alone. `None`:
            those of this process.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("--step-regex", dest="step"), parser.add_argument("--link", action="store_true")
        >>> print(in_options(r"say step='img_(\d+)', or link=False", parser, typed=()))
        say --step-regex 'img_(\d+)', or no --link
    """
    words = [word for word in (sys.argv[1:] if typed is None else typed) if not word.startswith("-")]
    options = {action.dest: action for action in parser._actions}
    known = parser._option_string_actions
    for said, option, instead in OTHERS:
        if option in known:
            text = re.sub(rf"(?<![\w/]){re.escape(said)}(?![\w/'\"])", instead, text)

    def option_of(found: re.Match[str]) -> str:
        name, value = found[1], found[2] if found.re is ARGUMENT else None
        if name not in options or any(found[0] in word for word in words if found.re is ARGUMENT):
            return found[0]
        return _written(options[name], value)

    return ARGUMENT.sub(option_of, FIRST.sub(option_of, text, count=1) if FIRST.match(text) else text)


def _written(action: argparse.Action, value: str | None) -> str:
    """An option as it is typed, with what an argument's value is in the words of a shell."""
    name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
    if value in ("None", "False"):
        return f"no {name}"
    if value in (None, "True"):
        return name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the \d in '(\d+)', which stays as it is
        try:
            meant: Any = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # in brackets, and no Python: (low, high)
            return f"{name} {value}"
    if isinstance(meant, dict):
        meant = [f"{key}={part}" for key, part in meant.items()]
    parts = meant if isinstance(meant, (list, tuple)) else [meant]
    return " ".join([name, *(shlex.quote(str(part)) for part in parts)])
