"""What holds for every command: `--json`, `-o -`, exit codes in `--help`, options by their names, a sign of life."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import time
from collections.abc import Iterator

import pytest
import torch

from qa_hooks._base import progress
from qa_hooks._base.progress import Heartbeat, Progress, counted
from qa_hooks.cli import _parser, main
from qa_hooks.images import save_image
from qa_hooks.writers import TensorBoardWriter

STDOUT = {"score", "filter", "report"}  # what they write is text, so that -o - is the terminal or a pipe


def leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield " ".join(path), parser
    for action in below:
        for name, child in action.choices.items():
            yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(_parser()))


def test_there_are_commands():
    assert {"score", "filter", "pick", "compare", "watch", "report", "doctor", "fit gmm", "fit pairs"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    def test_help_has_an_example_and_the_exit_codes(self, name, capsys):
        with pytest.raises(SystemExit) as end:
            main([*name.split(), "--help"])
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert re.search(r"\nexamples?:\n", said)
        assert f"qa-hooks {name}" in said.partition("example")[2]
        assert re.search(r"exit codes: 0 it worked; 1 bad input, with a message; 2 a wrong option; ", said)
        assert "130 Ctrl-C" in said

    def test_its_examples_are_commands(self, name):
        for line in re.findall(r"^  (.*qa-hooks .*|.*-m qa_hooks .*)$", COMMANDS[name].epilog, re.M):
            words = re.split(
                r" (?:\|\|?|>|&&) |  +", line.partition("qa-hooks ")[2] or line.partition("-m qa_hooks ")[2]
            )[0]
            options = _parser().parse_args(shlex.split(words))
            assert options.run

    def test_json_means_the_same(self, name):
        (action,) = [action for action in COMMANDS[name]._actions if "--json" in action.option_strings]
        assert (action.nargs, action.const) == ("?", "-")
        assert action.help.startswith("print the result as JSON, and nothing else, on stdout")

    def test_options_are_described(self, name):
        for action in COMMANDS[name]._actions:
            assert action.help, action.dest
            assert "None" not in action.help, "Python's word"
            assert not action.help.removesuffix("...").endswith("."), action.help

    def test_where_the_output_goes(self, name, capsys):
        outputs = [a for a in COMMANDS[name]._actions if {"-o", "--out"} & set(a.option_strings)]
        for action in outputs:
            option = action.option_strings[0]
            if name in STDOUT:
                assert "-" in action.help
                continue
            with pytest.raises(SystemExit) as end:
                main([*name.split(), option, "-"])
            assert end.value.code == 2
            assert "it cannot be written to the terminal" in capsys.readouterr().err

    def test_a_number_that_makes_no_sense_is_refused_by_the_options_name(self, name, capsys):
        numbers = [a for a in COMMANDS[name]._actions if getattr(a.type, "__qualname__", "").split(".")[0] in
                   ("whole", "between")]  # fmt: skip
        plain = [a for a in COMMANDS[name]._actions if a.type in (int, float)]
        assert not plain, "an option that takes any number"
        for action in numbers:
            for value in ("x", "nan", "-1"):
                with pytest.raises(SystemExit) as end:
                    main([*name.split(), f"{action.option_strings[0]}={value}"])
                assert end.value.code == 2
                said = capsys.readouterr().err
                assert f"argument {action.option_strings[0]}: it must be a" in said, said


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(12):
            image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(number)).byte()
            save_image(image, tmp_path / name / f"{number}.png")
    writer = TensorBoardWriter("run")
    writer.scalar("qa_eval/x/mean", 1.0, 1)
    writer.close()
    return tmp_path


SCORE = ["score", "b", "--reference", "a", "--scorer", "psnr"]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ([*SCORE, "-o", "t.csv"], "scorers"),
        (["pick", "b", "--reference", "a", "--scorer", "psnr", "--out", "picked"], "kept"),
        (["compare", "a", "b", "--metrics", "fd"], "values"),
        (["watch", "b", "--scorer", "ssim", "--once"], None),
        (["report", "run", "-o", "r.html"], "output"),
        (["info"], "torch"),
        (["doctor", "psnr", "--size", "32"], "verdict"),
    ],
)
def test_json_is_all_that_stdout_has(folder, command, key, capsys):
    if command[0] == "report":
        pytest.importorskip("matplotlib")
    code = main([*command, "--json"])
    out, err = capsys.readouterr()
    if key is None:  # an error is told as ever
        assert code == 1
        assert out == ""
        assert err.startswith(f"qa-hooks {command[0]}: ")
        return
    assert code == 0, err
    assert key in json.loads(out)


def test_json_into_a_file_leaves_the_text_where_it_was(folder, capsys):
    assert main(["scorers", "--no-cost"]) == 0
    text = capsys.readouterr().out
    assert main(["scorers", "--no-cost", "--json", "found.json"]) == 0
    assert capsys.readouterr().out == text
    assert main(["scorers", "--no-cost", "--json"]) == 0
    assert json.loads((folder / "found.json").read_text()) == json.loads(capsys.readouterr().out)


def test_json_takes_no_folder_that_the_command_is_about(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--json", "photos", "real", "fake"])
    assert "a file that ends in .json, or nothing (as the last word): 'photos'" in capsys.readouterr().err
    (folder / "no folder").write_text("")
    assert main(["scorers", "--no-cost", "--json", "no folder/found.json"]) == 1
    assert "--json" in capsys.readouterr().err


def test_the_list_of_filter_is_in_its_json(folder, capsys):
    assert main([*SCORE, "-o", "t.csv"]) == 0
    capsys.readouterr()
    assert main(["filter", "t.csv", "--keep", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["kept"]) == 3
    assert found["images"] == 12


def test_each_message_on_stderr_has_the_commands_name(folder, capsys):
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG")
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG")
    for command in ([*SCORE, "-o", "-"], ["compare", "a", "b", "--metrics", "fd"], ["score", "c", "--scorer", "psnr"]):
        main([*command, *(["-o", "t.csv"] if command[1] == "c" else [])])
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert lines[0].startswith(f"qa-hooks {command[0]}: ")
        assert [line for line in lines if not line.startswith((f"qa-hooks {command[0]}: ", "  "))] == []


def test_json_and_the_table_do_not_mix(folder, capsys):
    assert main([*SCORE, "-o", "-", "--json"]) == 1
    assert "-o - and --json both want stdout" in capsys.readouterr().err


def test_the_scorers_as_json(capsys):
    assert main(["scorers", "--no-cost", "--json"]) == 0
    rows = {row["scorer"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["psnr"]["better"] == "higher"


class TestSignsOfLife:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch, caplog):
        monkeypatch.setattr(progress, "EVERY", 0.05)
        caplog.set_level(logging.INFO, "qa_hooks.progress")

    def wait_for(self, caplog, text):
        end = time.monotonic() + 20
        while text not in caplog.text:
            assert time.monotonic() < end, caplog.text
            time.sleep(0.01)

    def test_of_work_that_nobody_counts(self, caplog):
        with Heartbeat():
            self.wait_for(caplog, "at work for")

    def test_of_one_image_that_takes_long(self, caplog):
        with Heartbeat(waits=True), Progress("scores", 60) as bar:
            bar.update(20, failed=1, note="slow")
            self.wait_for(caplog, "scores: 20 of 60, 1 with problems, slow, about")

    def test_none_while_a_command_waits(self, caplog):
        with Heartbeat(waits=True):
            time.sleep(0.3)
        assert not caplog.records

    def test_without_a_command_the_work_speaks_for_itself(self, caplog):
        for _ in counted(range(1), "steps", unit="step"):
            self.wait_for(caplog, "steps: 0 of 1")
        assert not progress._running
        assert not progress._beating

    def test_an_error_ends_it(self):
        with pytest.raises(ValueError, match="x"), Heartbeat(), Progress("a", 1):
            raise ValueError("x")
        assert not progress._running
        assert not progress._beating


def test_large_pictures_are_scored_without_a_word_of_pillows(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    save_image(torch.zeros(3, 192, 192, dtype=torch.uint8), tmp_path / "images" / "large.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 192 * 192 - 1)
    command = ["score", str(tmp_path / "images"), "--scorer", "niqe_bsd100", "-o", str(tmp_path / "t.csv")]
    assert main(command) == 0
    assert "Image size" not in capsys.readouterr().err
