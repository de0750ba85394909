"""The commands and examples, run as a user runs them, with few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.images import save_image

ROOT = Path(__file__).resolve().parents[2]


def test_demo_writes_what_it_says(tmp_path, capsys):
    assert main(["demo", "--steps", "40", "--out", str(tmp_path / "demo"), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    for variant in ("plain", "ssim", "niqe"):
        assert f"| {variant} | 40 |" in out
        assert list((tmp_path / "demo" / f"{variant}-seed0").glob("events.*"))
    assert "held-out real images" in out
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [run["variant"] for run in results["runs"]] == ["plain", "ssim", "niqe"]
    assert results["spec"]["extractor"] == "digits-cnn64"
    assert all(run["fd"] > 0 for run in results["runs"])
    assert (tmp_path / "demo" / "samples.png").stat().st_size > 1000


def test_demo_on_a_folder_with_a_broken_file(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for index in range(520):
        folder = tmp_path / "data" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        level = 120 * (index % 2)
        image = torch.randint(level, level + 100, (3, 18, 20), generator=generator, dtype=torch.uint8)
        save_image(image, folder / f"{index:03d}.png")
    (tmp_path / "data" / "a" / "broken.png").write_bytes(b"not a picture")
    arguments = ["--data", str(tmp_path / "data"), "--steps", "20", "--size", "16", "--variants", "plain", "ssim"]
    assert main(["demo", *arguments, "--equal", "time", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "1 of 521 files could not be read" in said.err
    assert "data: " in said.err
    assert "FD_data-cnn64" in said.out
    assert "CPU ms a step" not in said.out  # nothing but the table and where the rest is


def test_bad_options_are_told_without_a_traceback(tmp_path, capsys):
    assert main(["demo", "--variants", "brisque"]) == 1
    assert "variants must be some of" in capsys.readouterr().err
    assert main(["demo", "--data", str(tmp_path)]) == 1
    assert "holds no image files" in capsys.readouterr().err
    assert main(["demo", "--seeds", "1", "1"]) == 1
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["fit"], ["fit", "niqe"], ["info"]])
def test_help_explains(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 60


def test_info_names_versions_extras_and_devices(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("qa_hooks", "torch", "python", "cuda", "[wandb]"):
        assert word in out


def test_fit_niqe_makes_a_scorer_of_a_folder(tmp_path, photographs, capsys):
    for index, image in enumerate(photographs):
        save_image((image * 255).byte(), tmp_path / f"{index}.png")
    output = tmp_path / "own.safetensors"
    assert main(["fit", "niqe", str(tmp_path), "-o", str(output), "--name", "own", "--block", "32"]) == 0
    from qa_hooks.scorers import NIQE

    scorer = NIQE(str(output))
    assert scorer.name == "niqe_own"
    assert torch.isfinite(scorer(photographs)).all()


@pytest.mark.parametrize("quality", ["ssim", "niqe"])
def test_the_example_runs(tmp_path, quality):
    command = [
        sys.executable,
        "examples/qagan_digits.py",
        "--steps",
        "40",
        "--quality",
        quality,
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "held-out real" in done.stdout
    assert (tmp_path / f"{quality}-seed0.png").exists()
    assert list((tmp_path / f"{quality}-seed0").glob("events.*"))


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "qa_hooks", "info"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("qa_hooks")


@pytest.mark.parametrize("command", ["score", "compare"])
def test_strict_says_by_its_code_that_images_could_not_be_used(command, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(12):
            save_image(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), tmp_path / folder / f"{number}.png")
    a, b, table = (str(tmp_path / name) for name in ("a", "b", "t.csv"))
    end = {
        "score": ["score", b, "--reference", a, "--scorer", "psnr", "-o", table, "--overwrite"],
        "compare": ["compare", a, b, "--metrics", "fd"],
    }[command]
    assert main([*end, "--strict"]) == 0
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG")
    if command == "score":
        (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG")
    assert main(end) == 0
    assert main([*end, "--strict"]) == 3
    assert "1 image with problems" in capsys.readouterr().err


def test_completion_is_a_script_that_the_shell_reads(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert end.value.code == 0
    assert "report" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
