"""A command says a function's arguments as its options, and what was probably meant; it starts without torch."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from qa_hooks._base.text import meant, plural
from qa_hooks.cli import _parser, main
from qa_hooks.cli.wording import in_options


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("folder", metavar="DIR")
    made.add_argument("--step-regex", dest="step")
    made.add_argument("--held-out", type=float)
    made.add_argument("--calibration")
    made.add_argument("--overwrite", action="store_true")
    made.add_argument("--columns", nargs="+")
    made.add_argument("-o", "--output", dest="out")
    return made


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("a larger held_out=, or more", "a larger --held-out, or more"),
        ("held_out=0.2.", "--held-out 0.2."),
        (r"say step='img_(\d+)'", r"say --step-regex 'img_(\d+)'"),
        ("calibration=None does", "--calibration none does"),
        ("out=None", "no --output"),
        ("start anew with resume=False", "start anew with --overwrite"),
        ("columns={'name': 'a b', 'rating': 'c'} and", "--columns 'name=a b' rating=c and"),
        ("columns=['a', 'b']", "--columns a b"),
        ("out must be a folder", "--output must be a folder"),
        ("folder must not be empty", "DIR must not be empty"),
        ("out='/x y' cannot be written", "--output '/x y' cannot be written"),
    ],
)
def test_an_argument_is_said_as_the_option_that_fills_it(parser, said, wanted):
    assert in_options(said, parser, typed=()) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "seed=3 was drawn",  # no option of this command
        "runs/held_out=0.2/a.png is broken",  # a path
        "held_out=0.png is broken",
        "a 'held_out=0.2' in quotes",
        "fd (step=3): 12.5",  # a fact in brackets
        "the step must",  # no message about an argument: it does not begin with one
        "scorers= or real=",  # neither --scorer nor --real is here
    ],
)
def test_other_words_stay(parser, text):
    assert in_options(text, parser, typed=()) == text


def test_what_was_typed_is_the_users_own_word(parser):
    assert in_options("step=3 is not a folder", parser, typed=("step=3",)) == "step=3 is not a folder"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["inof"], "(did you mean info?)"),
        (["fit", "gm", "photos"], "(did you mean gmm?)"),
        (["score", "a", "--scorers", "psnr", "-o", "t.csv"], "there is no --scorers (did you mean --scorer?)"),
        (["demo", "--varints", "plain"], "there is no --varints (did you mean --variants?)"),
        (["watch", "a", "--scorer", "psnr", "--onec"], "there is no --onec (did you mean --once?)"),
    ],
)
def test_a_slip_of_the_pen_is_named(command, wanted, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command)
    said = capsys.readouterr().err
    assert wanted in said
    place = "qa-hooks" if command[0] == "inof" else f"qa-hooks {command[0]}"
    assert said.startswith(f"usage: {place} ")  # the usage of the command, not of all commands


@pytest.mark.parametrize("word", ["--scor", "--scorer=psnr"])
def test_an_abbreviation_is_none(word, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["score", "a", word, *(["psnr"] if "=" not in word else [])])
    assert "there is no" not in capsys.readouterr().err


def test_no_default_is_shown_as_python_writes_it():
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for name in ("demo", "rate"):
        said = commands[name].format_help()
        assert "['" not in said
        assert "(default: )" not in said
    assert "(default: plain ssim niqe)" in " ".join(commands["demo"].format_help().split())


def test_the_command_starts_without_torch():
    """`--help` and a wrong option are answered at once, and Ctrl-C while torch is loaded is a Ctrl-C like any other."""
    check = "import sys, qa_hooks.cli; qa_hooks.cli._parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test_words():
    assert [plural(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert meant("muziq", ["pyiqa:musiq", "psnr"]) == ""
    assert meant("psn", ["pyiqa:musiq", "psnr"]) == " (did you mean psnr?)"
