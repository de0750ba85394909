"""The page of `qa-hooks rate` in a real browser; skipped where there is none."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qa_hooks.ratings import read_preferences
from web_driver import BROWSER, DRIVER, browser

pytestmark = [
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs chromium and chromedriver"),
    pytest.mark.slow,
]
ROOT = Path(__file__).resolve().parents[2]
SHOWN = "document.querySelector('main').classList.contains('shown') && ready"


def make_images(folder: Path, *, contents: int = 6, methods: int = 4, size: tuple[int, int] = (96, 144)) -> Path:
    """Method m adds noise of the strength m, so that a rater who looks always prefers the smaller m."""
    random = np.random.default_rng(0)
    for content in range(contents):
        clean = np.kron(random.integers(40, 215, (size[0] // 24, size[1] // 24, 3)), np.ones((24, 24, 1)))
        for method in range(methods):
            noisy = (clean + random.normal(0, 1, clean.shape) * 20 * method).clip(0, 255).astype(np.uint8)
            (folder / f"method{method}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(folder / f"method{method}" / f"scene{content}.png")
    return folder


class Command:
    """`qa-hooks rate` in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qa_hooks", "rate", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("answers go to"):
                break
        self.url = next(line.split()[1] for line in self.lines if line.startswith("open "))

    def end(self, how: int = signal.SIGINT) -> str:
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return out + err


def noise_of(window, names: list[str]) -> tuple[int, int]:
    """The methods on the left and on the right, which the page does not tell: by the order of the files."""
    shown = window.script("return [state.question.left, state.question.right]")
    return tuple(int(names[i].split("/")[0][-1]) for i in shown)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_thirty_pairs_a_second_tab_and_a_kill_lose_nothing(tmp_path):
    folder, output = make_images(tmp_path / "images"), tmp_path / "pairs.csv"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    with browser(tmp_path / "profile") as window:
        command = Command(folder, "-o", output, "--rater", "anna", "--repeats", "0.2", "--seed", "1")
        window.open(command.url)
        for number in range(30):
            window.wait_for(SHOWN)
            if number == 3 and (place := os.environ.get("QA_HOOKS_PICTURES")):
                window.picture(Path(place) / "rate.png")
                window.press("z")
                window.picture(Path(place) / "rate-zoomed.png")
                window.press("z")
            left, right = noise_of(window, names)
            before = window.script("return state.question.number")
            if number % 10 == 9:
                window.click(f"[data-choice={'left' if left < right else 'right'}]")
            else:
                window.press("ArrowLeft" if left < right else "ArrowRight")
            window.wait_for(f"state.question === null || state.question.number !== {before}")
            assert len(rows(output)) == number + 1  # before the next pair is shown
            if number == 9:  # a second tab shows the same pair; what one of them answers counts once
                first = window.tab()
                window.new_tab()
                window.open(command.url)
                window.wait_for(SHOWN)
                second, asked = window.tab(), window.script("return state.question.number")
                window.switch(first)
                window.wait_for(SHOWN)
                assert window.script("return state.question.number") == asked
                left, right = noise_of(window, names)
                window.press("ArrowLeft" if left < right else "ArrowRight")
                window.wait_for(f"state.question.number !== {asked}")
                window.switch(second)
                window.script(f"send('answer', {{question: {asked}, choice: 'same'}})")
                window.wait_for("document.getElementById('notice').textContent.includes('another tab')")
                assert len(rows(output)) == 11
                window.press("Backspace")  # and can be taken back
                window.wait_for(f"{SHOWN} && state.here === 10")
                assert len(rows(output)) == 10
                window.switch(first)
                window.open(command.url)
            if number == 19:  # killed, and started again
                command.end(signal.SIGKILL)
                window.press("ArrowLeft")
                window.wait_for("document.getElementById('notice').textContent.includes('ended')")
                command = Command(folder, "-o", output, "--rater", "anna", "--repeats", "0.2")
                assert len(rows(output)) == 20
                window.open(command.url)
        said = command.end()
    assert "of 36 pairs" in said
    found = read_preferences(output, images=folder)
    assert len(found) == 30
    for pair in found:  # the noisier one never won
        assert pair.a.split("/")[1] == pair.b.split("/")[1]
        assert pair.content == Path(pair.a).stem
        assert pair.better == np.sign(int(pair.b.split("/")[0][-1]) - int(pair.a.split("/")[0][-1]))
    assert {pair.rater for pair in found} == {"anna"}
    assert {row["left"] for row in rows(output)} == {"a", "b"}  # sides are drawn
    distinct = {(pair.a, pair.b) for pair in found}
    assert len(distinct) < 30  # some came again
    assert len(found.majority()) == len(distinct)


def test_the_reference_stands_in_the_middle_and_the_end_is_told(tmp_path):
    folder = make_images(tmp_path / "images", contents=1, methods=3)
    (folder / "method0").rename(tmp_path / "originals")
    output = tmp_path / "pairs.csv"
    with browser(tmp_path / "profile") as window:
        command = Command(folder, "-o", output, "--reference", tmp_path / "originals", "--by", "name", "--repeats", "0")
        window.open(command.url)
        window.wait_for(SHOWN)
        assert window.script("return !document.getElementById('reference').hidden")
        if place := os.environ.get("QA_HOOKS_PICTURES"):
            window.picture(Path(place) / "rate-reference.png")
        window.press(" ")
        window.wait_for("document.getElementById('end').textContent.includes('last pair')")
        command.end()
    assert [row["label"] for row in rows(output)] == ["0"]
