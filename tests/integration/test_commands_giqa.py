"""`qa-hooks fit`, `score`, `filter`, `pick`, `scorers`, run as a user runs them: killed, continued, under torchrun."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.folders import read_scores
from qa_hooks.images import load_image, make_grid, save_image, to_uint8
from qa_hooks.scorers import load_scorer

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def samples(tmp_path, digits):
    """60 digits, ten of them noise, three files that are no images."""
    root = tmp_path / "samples"
    (root / "sub, folder").mkdir(parents=True)
    images = to_uint8(digits[:60], (-1, 1))
    images[50:] = torch.randint(0, 256, images[50:].shape, dtype=torch.uint8)
    for index, image in enumerate(images):
        save_image(image, root / ("sub, folder" if index % 2 else "") / f"{index:02d}.png")
    whole = (root / "00.png").read_bytes()
    (root / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("not a picture")
    (root / "empty.bmp").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def gmm(tmp_path_factory, digits):
    root = tmp_path_factory.mktemp("gmm")
    for index, image in enumerate(to_uint8(digits[100:400], (-1, 1))):
        save_image(image, root / f"{index}.png")
    (root / "broken.png").write_text("")
    output = root / "gmm.safetensors"
    arguments = ["--components", "2", "--pca", "16", "--covariance", "diag", "--calibration", "minmax"]
    assert main(["fit", "gmm", str(root), "-o", str(output), *arguments]) == 0
    return str(output)


def run(arguments: list[object], capsys) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_fit_score_filter_pick(samples, gmm, tmp_path, capsys):
    table_path = tmp_path / "scores.csv"
    code, out, err = run(["score", samples, "--scorer", gmm, "-o", table_path], capsys)
    assert code == 0
    counts, digest = out.splitlines()
    assert counts == f"{table_path}: 60 images; 3 with problems"
    assert digest.startswith("  giqa_gmm: mean ")
    assert "higher is better; worst " in digest
    assert all(f"  {name}: is not a readable image" in err for name in ("truncated.png", "text.jpg", "empty.bmp"))
    table = read_scores(table_path)
    name, calibrated = table.columns
    assert calibrated == f"{name}_calibrated"
    scorer = load_scorer(gmm)
    images = torch.stack([load_image(samples / path) for path in table.paths])
    assert torch.allclose(table.columns[name], scorer(images), rtol=1e-4, atol=1e-3)
    assert torch.allclose(table.columns[calibrated], scorer.calibrated()(images), atol=1e-4)

    code, out, _ = run(["filter", table_path, "--keep", "0.8"], capsys)
    best = out.splitlines()
    assert code == 0
    assert len(best) == 48
    by_score = sorted(table.paths, key=lambda path: -table.columns[name][table.paths.index(path)].item())
    assert best == by_score[:48]
    noise = {f"{index}.png" for index in range(50, 60)}
    assert not noise & {Path(path).name for path in best}

    code, out, _ = run(["pick", samples, "--scorer", gmm, "--keep", "0.8", "--out", tmp_path / "picked"], capsys)
    assert code == 0
    assert f"kept 48 of 63 images, {name}" in out
    kept = [
        path.relative_to(tmp_path / "picked" / "images").as_posix() for path in files(tmp_path / "picked" / "images")
    ]
    assert sorted(kept) == sorted(best)
    assert all((tmp_path / "picked" / "images" / k).read_bytes() == (samples / k).read_bytes() for k in kept)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() or path.is_symlink()]


def read_manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_repeated_pick_follows_its_options(samples, gmm, tmp_path, capsys):
    out = tmp_path / "picked"
    arguments = ["pick", samples, "--scorer", gmm, "--out", out, "--keep"]
    assert run([*arguments, "0.5"], capsys)[0] == 0
    rows = read_manifest(out)
    assert [row["kept"] for row in rows] == ["1"] * 30 + ["0"] * 33
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 61)] + [""] * 3
    scores = [float(row["score"]) for row in rows[:60]]
    assert scores == sorted(scores, reverse=True)
    width = load_image(out / "contact_sheet.png").shape[2]
    assert 300 < width < 1500
    before = {path: path.stat().st_ino for path in files(out / "images")}
    assert run([*arguments, "10"], capsys)[0] == 0
    after = {path: path.stat().st_ino for path in files(out / "images")}
    assert len(after) == 10
    assert after.items() <= before.items()  # the same files, not copied again
    first = next(iter(after))
    first.write_bytes(b"damaged")
    assert run([*arguments, "10"], capsys)[0] == 0
    assert first.read_bytes() != b"damaged"
    assert run([*arguments, "10", "--link"], capsys)[0] == 0
    assert all(path.is_symlink() and path.exists() for path in files(out / "images"))
    assert len(files(out / "images")) == 10
    assert sorted(p.name for p in out.iterdir()) == [
        "contact_sheet.png",
        "images",
        "manifest.csv",
        "scores.csv",
        "scores.csv.json",
    ]


def test_pick_spares_what_is_not_its_own(samples, gmm, tmp_path, capsys):
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "images" / "holiday.png").write_bytes(b"precious")
    for out, message in (
        (samples / "picked", "must not lie inside"),
        (samples, "must not lie inside"),
        (tmp_path / "mine", "no earlier pick"),
    ):
        code, _, err = run(["pick", samples, "--scorer", gmm, "--out", out], capsys)
        assert code == 1
        assert message in err
    assert (tmp_path / "mine" / "images" / "holiday.png").read_bytes() == b"precious"
    out = tmp_path / "picked"
    assert run(["pick", samples, "--scorer", gmm, "--out", out], capsys)[0] == 0
    (out / "images" / "holiday.png").write_bytes(b"precious")
    code, _, err = run(["pick", samples, "--scorer", gmm, "--out", out, "--keep", "5"], capsys)
    assert code == 1
    assert "holiday.png is not of this pick" in err
    assert len(files(out / "images")) == 55
    code, _, err = run(["pick", samples, "--scorer", "psnr", "--reference", samples, "--out", out], capsys)
    assert code == 1
    assert "cannot be continued with other settings" in err


def test_a_keep_that_makes_no_sense_is_told_before_scoring(samples, gmm, tmp_path, capsys):
    for keep in ("1.5", "0", "-1", "nan", "half"):
        with pytest.raises(SystemExit) as end:
            run(["pick", samples, "--scorer", gmm, f"--keep={keep}", "--out", tmp_path / "out"], capsys)
        assert end.value.code == 2
        assert "--keep: it must be a share such as 0.8, or a number of images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_extractors_weights_may_come_from_a_file(samples, tmp_path, capsys):
    from torchvision import models

    torch.save(models.squeezenet1_1(weights=None).state_dict(), tmp_path / "none.pth")
    torch.save(models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "mobile.pth")
    arguments = ["fit", "knn", samples, "-o", tmp_path / "knn.safetensors", "--extractor", "mobilenet_v3_small"]
    code, _, err = run([*arguments, "--weights", tmp_path / "none.pth"], capsys)
    assert code == 1
    assert "does not fit" in err
    assert run([*arguments, "--weights", tmp_path / "mobile.pth"], capsys)[0] == 0
    assert load_scorer(tmp_path / "knn.safetensors").extractor.name == "mobilenet_v3_small-mobile"


def test_pick_tells_what_it_does_to_recall(samples, gmm, tmp_path, capsys):
    arguments = ["pick", samples, "--scorer", gmm, "--keep", "0.3", "--out", tmp_path / "picked", "--recall"]
    code, out, _ = run(arguments, capsys)
    assert code == 0
    kept, drawn = (float(text) for text in re.findall(r"(?:whole set|at random) ([\d.]+)", out))
    assert 0 <= kept < drawn <= 1


@pytest.mark.parametrize("kind", ["gmm", "knn"])
def test_fit_writes_a_scorer_that_prefers_digits(samples, tmp_path, capsys, kind, digits):
    arguments = ["fit", kind, samples, "-o", tmp_path / "s.safetensors", "--limit", "50", "--held-out", "0.3"]
    extra = ["--components", "1", "--pca", "5"] if kind == "gmm" else ["--k", "2"]
    code, out, err = run([*arguments, *extra], capsys)
    assert code == 0
    assert "could not be read and were left out" in err
    scorer = load_scorer(tmp_path / "s.safetensors")
    assert scorer.name in out
    assert scorer.calibration is not None
    noise = torch.rand(40, 1, 16, 16)
    assert scorer(to_uint8(digits[400:440], (-1, 1))).median() > scorer(noise).median()


def test_fit_snapshot(tmp_path, digits, capsys):
    images = to_uint8(digits[:120], (-1, 1))
    for root in ("real", "snapshots/step_100", "snapshots/step_200"):
        (tmp_path / root).mkdir(parents=True)
    for index, image in enumerate(images):
        noise = torch.randint(0, 256, image.shape, dtype=torch.uint8)
        half = ((image.int() + noise.int()) // 2).to(torch.uint8)
        save_image(image, tmp_path / "real" / f"{index}.png")
        save_image(noise, tmp_path / "snapshots" / "step_100" / f"{index}.png")
        save_image(half, tmp_path / "snapshots" / "step_200" / f"{index}.png")
    output = tmp_path / "mbc.safetensors"
    arguments = ["fit", "snapshot", tmp_path / "snapshots", "--real", tmp_path / "real", "-o", output]
    assert run([*arguments, "--classifiers", "2", "--steps", "60"], capsys)[0] == 0
    scorer = load_scorer(output)
    fresh = to_uint8(digits[200:240], (-1, 1))
    assert scorer(fresh).mean() > scorer(torch.randint(0, 256, fresh.shape, dtype=torch.uint8)).mean()
    assert run(["score", tmp_path / "real", "--scorer", output, "-o", tmp_path / "s.csv"], capsys)[0] == 0


def test_fit_snapshot_cuts_grids(tmp_path, digits, capsys):
    """Grids of 8 x 4 samples, as trainers write them, are worth their cells; as they are they are warned of."""
    (tmp_path / "real").mkdir()
    (tmp_path / "samples").mkdir()
    for index, image in enumerate(to_uint8(digits[:60], (-1, 1))):
        save_image(image, tmp_path / "real" / f"{index}.png")
    for step in (100, 200):
        noise = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8)
        save_image(make_grid(noise, columns=8, padding=2), tmp_path / "samples" / f"{step}.png")
    arguments = ["fit", "snapshot", tmp_path / "samples", "--real", tmp_path / "real", "--classifiers", "2"]
    cut = tmp_path / "cut.safetensors"
    code, _, err = run([*arguments, "--steps", "10", "--grid", "8x4+2", "-o", cut], capsys)
    assert code == 0, err
    assert load_scorer(cut).shape == (1, 16, 16)
    code, _, err = run([*arguments, "--steps", "10", "-o", tmp_path / "whole.safetensors"], capsys)
    assert code == 1  # two pictures are too few
    assert "looks like a grid of many images (8x4" in err


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--out", "-"], *(["fit", kind, "images", "-o", "-"] for kind in ("gmm", "knn", "niqe", "rank"))],
)
def test_what_no_terminal_can_show_is_not_sent_to_one(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "it cannot be written to the terminal" in capsys.readouterr().err


def test_a_json_scorer_tiles_and_overwrite(tmp_path, photographs, capsys):
    for root in ("made", "true"):
        (tmp_path / root).mkdir()
        save_image(to_uint8(photographs[0]), tmp_path / root / "a.png")
    arguments = ["score", tmp_path / "made", "--reference", tmp_path / "true", "-o", tmp_path / "s.csv"]
    assert run([*arguments, "--scorer", '{"type": "psnr", "channel": "y"}', "--tiles", "128"], capsys)[0] == 0
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == ["path,tile_x,tile_y,psnr_y", "a.png,0,0,100.0"]
    code, _, err = run([*arguments, "--scorer", "psnr", "--tiles", "128"], capsys)
    assert code == 1
    assert "--overwrite" in err
    assert err.count("\n") == 1
    assert run([*arguments, "--scorer", "psnr", "ssim", "--overwrite"], capsys)[0] == 0
    with pytest.raises(SystemExit) as end:
        main(["score", str(tmp_path), "-o", "s.csv", "--scorer", "{broken"])
    assert end.value.code == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "{samples}", "--scorer", "psnr", "-o", "{tmp}/s.csv"], "name their folder with --reference"),
        (["score", "{samples}", "--scorer", "nonsense", "-o", "{tmp}/s.csv"], "unknown scorer 'nonsense'"),
        (["score", "{samples}", "--scorer", "giqa-gmm", "-o", "{tmp}/s.csv"], "giqa-gmm"),
        (["score", "{samples}", "--scorer", "{tmp}/no.safetensors", "-o", "{tmp}/s.csv"], "does not exist"),
        (["score", "{samples}", "--scorer", "niqe_bsd100", "-o", "{tmp}/s.csv"], "none of 63 images could be scored"),
        (["score", "{samples}", "--scorer", "niqe_bsd100", "-o", "{tmp}/f/s.csv"], "cannot be written"),
        (["score", "{tmp}/none", "--scorer", "niqe_bsd100", "-o", "{tmp}/s.csv"], "is not a folder"),
        (
            ["score", "{samples}", "--scorer", "niqe_bsd100", "-o", "{tmp}/s.csv", "--device", "cuda:77"],
            "--device cuda:77",
        ),
        (["filter", "{tmp}/none.csv", "--keep", "0.5"], "does not exist"),
        (["fit", "gmm", "{samples}", "-o", "{tmp}/s.txt"], "ending in .safetensors"),
        (["fit", "knn", "{samples}", "-o", "{tmp}/f/s.safetensors"], "cannot be written"),
        (["fit", "gmm", "{samples}", "-o", "{tmp}/s.safetensors", "--extractor", "nonsense"], "nonsense"),
        (["fit", "gmm", "{samples}", "-o", "{tmp}/s.safetensors", "--components", "500"], "500"),
    ],
)
def test_bad_input_is_one_line(samples, tmp_path, capsys, arguments, message):
    (tmp_path / "f").write_text("in the way")
    arguments = [text.format(samples=samples, tmp=tmp_path) if text.startswith("{") else text for text in arguments]
    code, out, err = run(arguments, capsys)
    assert code == 1
    assert message in err.splitlines()[-1]
    command = " ".join(arguments[: 1 + (arguments[0] == "fit")])
    assert err.splitlines()[-1].startswith(f"qa-hooks {command}: ")
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    "command", [["score"], ["filter"], ["pick"], ["scorers"], ["fit", "gmm"], ["fit", "knn"], ["fit", "snapshot"]]
)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "example" in out
    assert f"qa-hooks {' '.join(command)}" in out.rsplit("example", 1)[1]
    assert "None" not in out


def test_scorers_lists_them_all(capsys):
    from qa_hooks.scorers.catalogue import SPECS

    code, out, _ = run(["scorers"], capsys)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert set(lines) == {"scorer", *SPECS}
    assert "lower" in lines["niqe_bsd100"]
    assert float(lines["niqe_bsd100"].split()[-1]) > 0
    assert "images + reference" in lines["psnr"]
    assert lines["giqa-gmm"].split()[-1] == "-"


@pytest.fixture(scope="module")
def many(tmp_path_factory, photographs):
    root = tmp_path_factory.mktemp("many")
    generator = torch.Generator().manual_seed(0)
    for index in range(240):
        y, x = (int(v) for v in torch.randint(0, 80, (2,), generator=generator))
        save_image(to_uint8(photographs[index % 4][:, y : y + 112, x : x + 112]), root / f"{index:03d}.bmp")
    (root / "broken.png").write_text("nothing")
    return root


# The command as ever, but it waits without end at the 100th image: whoever kills it has the time to.
HANGS = """
import itertools, sys, threading
from qa_hooks.cli import main
from qa_hooks.scorers import NIQE
score, seen = NIQE.score, itertools.count(1)
def hanging(self, images, **inputs):
    if next(seen) == 100:
        threading.Event().wait()
    return score(self, images, **inputs)
NIQE.score = hanging
main(sys.argv[2:])
"""


def start(command: list[object], program: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(["-m"] if program is None else ["-c", program]), *map(str, command)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_run_goes_on(many, tmp_path, capsys):
    """A real kill -9; one image a batch, so that what comes out is the same to the last bit."""
    arguments = ["score", many, "--scorer", "niqe_bsd100", "--batch-size", "1", "-o"]
    assert run([*arguments, tmp_path / "whole.csv"], capsys)[0] == 0
    output = tmp_path / "killed.csv"
    process = start(["qa_hooks", *arguments, output], program=HANGS)
    growing = tmp_path / "killed.csv.rows0"
    while process.poll() is None and not (growing.exists() and growing.read_bytes().count(b"\n") > 20):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert 20 < growing.read_bytes().count(b"\n") < 241
    code, _, err = run(["filter", output, "--keep", "0.5"], capsys)
    assert code == 1
    assert "repeat the same `qa-hooks score`" in err
    assert run([*arguments, output], capsys)[0] == 0
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if "killed" in path.name) == [
        "killed.csv",
        "killed.csv.json",
    ]


def test_torchrun_gives_the_table_of_one_process(many, tmp_path, capsys):
    arguments = ["score", many, "--scorer", "niqe_bsd100", "--batch-size", "1", "--device", "cpu", "-o"]
    assert run([*arguments, tmp_path / "one.csv"], capsys)[0] == 0
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "qa_hooks"]
    output = tmp_path / "two.csv"
    process = start([*launch, *arguments, output])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[0] == f"{output}: 240 images; 1 with problems"
    assert out.splitlines()[1].startswith("  niqe_bsd100: mean ")
    assert len(out.splitlines()) == 2
    assert err.count("broken.png") == 1
    one = (tmp_path / "one.csv").read_bytes()
    assert output.read_bytes() == one
    specs = [json.loads((tmp_path / f"{name}.csv.json").read_text()) for name in ("one", "two")]
    assert len(specs[0]["files"]) == 240
    assert {**specs[0], "started": 0} == {**specs[1], "started": 0}

    # What two killed processes have left is finished by two others, and by one.
    lines = one.splitlines(keepends=True)
    for command in (launch, ["qa_hooks"]):
        output.write_bytes(b"".join(lines[:60]) + lines[60][:5])
        (tmp_path / "two.csv.part1").write_bytes(b"".join(lines[100:150]))
        (tmp_path / "two.csv.json").write_text(json.dumps({**specs[1], "complete": False}))
        process = start([*command, *arguments, output])
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert output.read_bytes() == one
        assert not list(tmp_path.glob("two.csv.*[0-9]"))


def test_torchrun_tells_errors_and_ends(many, tmp_path):
    """An error that only rank 0 sees must not leave the other waiting."""
    (tmp_path / "mine.csv").write_text("not,ours\n")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "qa_hooks", "score"]
    process = start([*launch, many, "--scorer", "niqe_bsd100", "--device", "cpu", "-o", tmp_path / "mine.csv"])
    _, err = process.communicate()
    assert process.returncode == 1
    assert "qa-hooks score: " in err
    assert "is no table of qa_hooks" in err
    assert (tmp_path / "mine.csv").read_text() == "not,ours\n"
