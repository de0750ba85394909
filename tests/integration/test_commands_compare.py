"""`qa-hooks compare` and `watch`, run as a user runs them: broken images, torchrun, a trainer that is still writing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.features import create_extractor
from qa_hooks.folders import watch_folder
from qa_hooks.folders.comparing.compare_folders import compare_folders
from qa_hooks.folders.watching.alarms import find_alarms, parse_threshold
from qa_hooks.functional.kid import kernel_distance
from qa_hooks.images import load_image, save_image, to_uint8
from qa_hooks.scorers import PSNR, FunctionScorer

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write(images, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(to_uint8(images, (-1, 1))):
        save_image(image, folder / f"{index:04d}.png")
    return folder


@pytest.fixture
def folders(tmp_path, digits):
    """150 real digits, 60 others, and the same 60 with noise and two broken files."""
    real, good = write(digits[:150], tmp_path / "real"), write(digits[200:260], tmp_path / "good")
    noisy = write((digits[200:260] + 0.4 * torch.randn(60, 1, 16, 16)).clamp(-1, 1), tmp_path / "noisy")
    (noisy / "0003.png").write_bytes((noisy / "0004.png").read_bytes()[:60])
    (noisy / "notes.png").write_text("not a picture")
    return real, good, noisy


@pytest.fixture
def brightness():
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)


def run(arguments, capsys):
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


@pytest.mark.filterwarnings("ignore:a component has about")
def test_compare_prints_writes_and_draws(folders, tmp_path, capsys):
    real, good, noisy = folders
    arguments = ["compare", real, good, noisy, "--metrics", "fd,kid,pr,qs", "--cache", tmp_path / "cache"]
    arguments.append("--always-judge")
    files = {name: tmp_path / name for name in ("result.json", "report.png")}
    code, out, err = run([*arguments, "--json", files["result.json"], "--report", files["report.png"]], capsys)
    assert code == 0
    assert "extractor random, resize none" in out
    assert out.startswith("n 58, real 150")  # 60 of 61 files were drawn, two of them broken; as many of the good ones
    assert "noisy: 2 images with problems" in err
    assert "notes.png: is not a readable image" in err
    result = json.loads(files["result.json"].read_text())
    assert result["format"] == "qa_hooks.comparison"
    assert result["comparisons"]["noisy"]["kd_random"]["verdict"] == "A better"
    assert set(result["failures"]["noisy"]) == {"0003.png", "notes.png"}
    extractor = create_extractor("random")
    features = [extractor(torch.stack([load_image(p) for p in sorted(f.iterdir())])) for f in (real, good)]
    alone = compare_folders(real, good, metrics=["kid"], progress=False).values["good"]["kd_random"]
    assert alone.value == pytest.approx(kernel_distance(*features).value, rel=1e-4)
    picture = load_image(files["report.png"])
    assert picture.shape[2] >= 760
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again, second, _ = run(arguments, capsys)
    assert again == 0
    assert second == out


def test_paired_files_and_references(folders, brightness):
    real, good, noisy = folders
    single = compare_folders(real, [good, noisy], metrics=(), scorers=[brightness], progress=False)
    paired = compare_folders(real, [good, noisy], metrics=(), scorers=[brightness], paired=True, progress=False)
    names = sorted({p.name for p in good.iterdir()} & {p.name for p in noisy.iterdir()} - {"0003.png"})
    a, b = (
        torch.stack([load_image(folder / n).float() / 255 for n in names]).mean((1, 2, 3)) for folder in folders[1:]
    )
    found = paired.comparisons["noisy"]["brightness"]
    assert found.n == len(names) == 59
    assert found.difference == pytest.approx(float((b - a).mean()), abs=1e-6)
    unpaired = single.comparisons["noisy"]["brightness"]
    assert unpaired.high - unpaired.low > 1.5 * (found.high - found.low)
    psnr = compare_folders(good, [noisy], metrics=(), scorers=["psnr"], paired=True, progress=False)
    pairs = [torch.stack([load_image(folder / n) for n in names]) for folder in (noisy, good)]
    assert psnr.values["noisy"]["psnr"].value == pytest.approx(
        float(PSNR()(pairs[0], reference=pairs[1]).mean()), rel=1e-5
    )


def test_files_without_a_partner_are_counted(folders, brightness):
    real, good, noisy = folders
    options = {"metrics": (), "scorers": [brightness], "progress": False}
    found = compare_folders(real, [good, noisy], paired=True, **options)
    assert "noisy: 1 file left out, without a partner of the same name in every folder" in found.notes
    assert not any("good" in note for note in found.notes)
    assert not any("partner" in note for note in compare_folders(real, [good, noisy], **options).notes)


def test_a_damaged_cache_is_made_again(folders, tmp_path):
    real, good, _ = folders
    options = {"metrics": ("kid",), "cache": tmp_path / "cache", "progress": False}
    first = compare_folders(real, good, **options)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with pytest.warns(UserWarning, match="does not hold features.*extracted again"):
        again = compare_folders(real, good, **options)
    assert again.values == first.values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare_folders(real, good, **options).values == first.values


def test_a_network_called_inception_makes_no_fid(folders):
    own = create_extractor(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()), name="inception")
    found = compare_folders(*folders[:2], metrics=("fd", "kid"), extractor=own, progress=False)
    assert list(found.values["good"]) == ["fd_own-inception", "kd_own-inception"]
    assert found.spec["resize"] == "none"


def test_what_cannot_be_compared(folders, tmp_path, capsys, digits):
    real, good, _ = folders
    write(digits[:30, :, :8, :8], tmp_path / "small")
    write(digits[:29], tmp_path / "mixed")
    save_image(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "mixed" / "z.png")
    write(digits[:9], tmp_path / "few")
    for arguments, message in (
        ([real, good, tmp_path / "small"], "such as by --size 64"),
        ([real, tmp_path / "mixed"], "mixed 29 of 16x16 and 1 of 8x8"),
        ([real, tmp_path / "few"], "9 generated and 150 real images: at least 10 images"),
        ([real, good, tmp_path / "small", "--metrics", "none", "--scorer", "niqe_bsd100"], "depends on the size"),
        ([real, tmp_path / "nowhere"], "is not a folder"),
        ([real, good, "--metrics", "fad"], "unknown metric 'fad' (did you mean fd?); known are fd, kid, pr, qs, ds"),
        ([real, good, "--metrics", "none"], "metrics or scorers"),
        ([real, good, "--report", tmp_path / "r.jpg"], "--report must be a PNG"),
        ([real, good, good], "given twice"),
    ):
        code, _, err = run(["compare", *arguments], capsys)
        assert code == 1
        assert message in err


def test_the_extractor_resizes_when_asked(folders, tmp_path, digits, capsys):
    real, good, _ = folders
    write(digits[200:260, :, :8, :8], tmp_path / "small")
    code, out, _ = run(["compare", real, good, tmp_path / "small", "--size", 12, "--metrics", "fd"], capsys)
    assert code == 0
    assert "resize 12 bilinear" in out
    assert "images of different sizes are compared (real 16x16, good 16x16, small 8x8)" in out
    assert "no verdict" in out


def test_a_folder_of_the_name_real_is_no_real_image(folders, tmp_path, digits):
    real, good, _ = folders
    other = write(digits[300:340], tmp_path / "b" / "real")
    found = compare_folders(real, [good, other], metrics=("kid",), progress=False)
    assert list(found.values) == ["real", "good", str(other.resolve())]
    assert found.values["real"] == {}


@pytest.mark.filterwarnings("ignore:a component has about")
def test_torchrun_gives_the_same_numbers(folders, tmp_path, capsys):
    real, good, noisy = folders
    arguments = ["compare", str(real), str(good), str(noisy), "--metrics", "fd,kid,pr,qs,ds", "--device", "cpu"]
    assert main([*arguments, "--json", str(tmp_path / "one.json")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launch += ["--standalone", "-m", "qa_hooks", *arguments, "--json", str(tmp_path / "two.json")]
    done = subprocess.run(launch, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("extractor random") == 1
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["failures"] == two["failures"]
    for label, values in one["values"].items():
        for metric, interval in values.items():
            assert list(two["values"][label][metric].values()) == pytest.approx(
                list(interval.values()), rel=1e-5, abs=1e-6
            )


def test_watch_scores_each_step_once(tmp_path, digits, brightness, capsys):
    samples, log = tmp_path / "samples", tmp_path / "log"
    for step in (100, 200, 300):
        write(digits[step : step + 24] - step / 1000, samples / f"step_{step}")
    (samples / "step_200" / "0001.png").write_bytes(b"")
    (samples / "readme.png").write_text("no step")
    real = write(digits[:100], tmp_path / "real")
    lines: list[str] = []
    options = {"scorers": [brightness], "real": real, "metrics": ("kid",), "every": 0.05, "once": True}
    options |= {"log_dir": log, "alarms": ["brightness<0.05"], "say": lines.append}
    result = watch_folder(samples, **options)
    assert list(result.steps) == [100, 300, 200]  # a step with a broken file is tried again
    assert result.steps[200]["n"] == 23
    expected = to_uint8(digits[100:124] - 0.1, (-1, 1)).float().mean() / 255
    assert result.steps[100]["brightness"] == pytest.approx(float(expected), abs=1e-6)
    assert result.best is not None
    assert result.best["step"] == 100
    assert json.loads((log / "best.json").read_text())["step"] == 100
    assert len(lines) == 3
    assert not (samples / "step_100" / "log").exists()
    again = watch_folder(samples, **options)
    assert len(lines) == 3
    assert again.steps == {step: result.steps[step] for step in (100, 200, 300)}
    assert again.best == result.best
    with pytest.raises(ValueError, match="other settings"):
        watch_folder(samples, **{**options, "real": None})
    with pytest.raises(ValueError, match="lies in the folder"):
        watch_folder(samples, **{**options, "log_dir": samples / "log"})
    with pytest.raises(ValueError, match="there is no value 'fd'"):
        watch_folder(samples, **{**options, "best": "fd"})


def test_the_best_step_follows_another_key(tmp_path, digits, brightness):
    samples, log = tmp_path / "samples", tmp_path / "log"
    for step in (1, 2, 3):
        write(digits[:2] / step, samples / f"step_{step}")
    darkness = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="darkness", higher_is_better=False)
    options = {"scorers": [brightness, darkness], "every": 0.05, "once": True, "log_dir": log, "say": lambda line: None}
    for changes, step in (({}, 3), ({"best": "darkness"}, 1), ({"mode": "min"}, 1), ({"mode": "max"}, 3)):
        result = watch_folder(samples, **options, **changes)
        written = json.loads((log / "best.json").read_text())
        assert result.best is not None
        assert {key: written[key] for key in result.best} == result.best
        assert written["step"] == step
        assert [Path(file).parent.name for file in written["files"]] == [f"step_{step}"] * 2
    (log / "best.json").unlink()
    watch_folder(samples, **options)
    assert json.loads((log / "best.json").read_text())["step"] == 3


def test_a_first_step_with_fewer_images_does_not_stay_the_yardstick(tmp_path, digits):
    samples, real = tmp_path / "samples", write(digits[:60], tmp_path / "real")
    options = {"real": real, "metrics": ("kid",), "every": 0.05, "once": True, "say": lambda line: None}
    write(digits[100:120], samples / "step_1")  # as good as real ones, so its distance is the smallest of all
    assert watch_folder(samples, log_dir=tmp_path / "log", **options).best["n"] == 20
    write(-digits[100:130], samples / "step_2")
    write(digits[100:130] * 0.2, samples / "step_3")
    write(digits[100:122], samples / "step_4")
    best = watch_folder(samples, log_dir=tmp_path / "log", **options).best
    assert best["n"] == 30
    assert best["step"] in (2, 3)
    assert json.loads((tmp_path / "log" / "best.json").read_text())["step"] == best["step"]
    assert watch_folder(samples, log_dir=tmp_path / "log", **options).best == best


def test_alarms():
    past = {step: {"q": 0.5, "q_std": 0.1, "fd": 10.0, "fd_low": 9.0, "fd_high": 11.0, "n": 64} for step in (1, 2, 3)}
    fine = {"q": 0.4, "q_std": 0.05, "fd": 15.0, "fd_low": 12.0, "fd_high": 18.0, "n": 64, "q_nonfinite": 0}
    assert find_alarms(4, fine, past, [parse_threshold("fd>20")], ["q"]) == []
    bad = {"q": 0.01, "q_std": 0.001, "fd": 40.0, "fd_low": 30.0, "fd_high": 50.0, "n": 64, "q_nonfinite": 2}
    found = find_alarms(4, bad, past, [parse_threshold("q<0.1"), parse_threshold("fd > 45")], ["q"])
    assert [key for key, _ in found] == ["q", "q", "q_std", "fd"]
    assert [key for key, _ in find_alarms(4, {**bad, "n": 32}, past, [], ["q"])] == ["q", "q_std"]  # fd depends on n
    for text in ("fd=3", "fd<", "<3", "fd<many", "fd<nan"):
        with pytest.raises(ValueError, match="KEY<VALUE or KEY>VALUE"):
            parse_threshold(text)


def test_watch_ends_with_code_3_after_an_alarm(tmp_path, digits, capsys):
    write(digits[:30], tmp_path / "samples" / "step_10")
    real = write(digits[100:200], tmp_path / "real")
    arguments = [
        "watch",
        tmp_path / "samples",
        "--real",
        real,
        "--once",
        "--every",
        0.05,
        "--log-dir",
        tmp_path / "log",
    ]
    code, out, err = run([*arguments, "--alarm", "fd>0"], capsys)
    assert code == 3
    assert "ALARM at step 10: fd>0: it is" in err
    assert "step 10: fd_random" in out
    assert json.loads((tmp_path / "log" / "alarms.jsonl").read_text())["key"] == "fd"
    assert run(arguments, capsys)[0] == 0
    assert run(["watch", tmp_path / "none", "--real", real, "--once", "--log-dir", tmp_path / "x"], capsys)[0] == 1


def test_a_step_is_scored_when_it_is_whole(folders, tmp_path, monkeypatch):
    """A slow trainer writes between two looks: other files each time, the last of them often cut off."""
    real, good, _ = folders
    images = [path.read_bytes() for path in sorted(good.iterdir())][:24]
    step = tmp_path / "samples" / "step_100"
    step.mkdir(parents=True)
    lines, looks = [], iter([(3, False), (20, True), (22, False), (24, False), (24, True)])  # files; is the last whole

    def put(count, *, whole):
        for index, data in enumerate(images[:count]):
            path = step / f"{index:04d}.png"
            path.write_bytes(data if whole or index < count - 1 else data[:70])
            os.utime(path, (4e9, 4e9))  # never old, however long a look takes

    def sleep(seconds):
        if lines:
            raise KeyboardInterrupt
        for count, whole in itertools.islice(looks, 1):
            put(count, whole=whole)

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        watch_folder(step.parent, real=real, metrics=("kid",), every=0.4, log_dir=tmp_path / "log", say=lines.append)
    assert next(looks, None) is None
    assert len(lines) == 1
    steps = json.loads((tmp_path / "log" / "watch.json").read_text())["steps"]
    assert [values["n"] for values in steps.values()] == [24]


def test_a_watcher_is_killed_and_goes_on(folders, tmp_path):
    """What it says is what the test waits for: no clock decides."""
    real, good, _ = folders
    samples, log, kept = tmp_path / "samples", tmp_path / "log", tmp_path / "kept"
    write(torch.stack([load_image(path) for path in sorted(good.iterdir())[:24]]).float() / 127.5 - 1, kept)
    samples.mkdir()
    command = [sys.executable, "-u", "-m", "qa_hooks", "watch", str(samples), "--real", str(real), "--metrics", "kid"]
    command += ["--every", "0.4", "--log-dir", str(log)]
    pipes = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def put(step):
        shutil.copytree(kept, tmp_path / "whole")
        (tmp_path / "whole").rename(samples / f"step_{step:08d}")

    def said(watcher, start):
        """What it has said until a line begins like this."""
        text = ""
        for line in watcher.stdout:
            text += line
            if line.startswith(start):
                return text
        raise AssertionError(f"it ended without {start!r}:\n{text}")

    put(100)
    put(200)
    watcher = subprocess.Popen(command, **pipes)
    try:
        first = said(watcher, "step 100:")
        watcher.kill()
        first += watcher.communicate()[0]
        put(300)
        put(400)
        watcher = subprocess.Popen(command, **pipes)
        second = said(watcher, "step 400:")
        watcher.send_signal(signal.SIGINT)
        second += watcher.communicate()[0]
    finally:
        watcher.kill()
    assert watcher.returncode == 130
    assert "Traceback" not in first + second
    assert "interrupted; the same command goes on" in second
    steps = json.loads((log / "watch.json").read_text())["steps"]
    assert [values["n"] for values in steps.values()] == [24] * 4
    assert len({values["kid"] for values in steps.values()}) == 1
    told = [line for line in (first + second).splitlines() if line.startswith("step ")]
    assert len(told) in (3, 4)  # killed between the state and the line, at most
    assert len({line.split(":")[0] for line in told}) == len(told)  # none was scored again
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log)).Reload()
    assert {e.step for e in events.Scalars("qa_eval/kd_random_n=24/value")} == {100, 200, 300, 400}
