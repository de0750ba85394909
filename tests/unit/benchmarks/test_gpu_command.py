"""`python -m benchmarks gpu`: results are kept as they come, a stopped run goes on, errors are results."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gan_training import VARIANTS, train
from qa_hooks.demo.results import Results


def test_results_are_kept_and_found_again(tmp_path):
    Results(tmp_path, {"tiny": True, "seeds": (0, 1)}).add("a", {"ok": True})
    again = Results(tmp_path, {"tiny": True, "seeds": [0, 1]})
    assert "a" in again
    assert "b" not in again
    again.add("b", 3)
    assert json.loads((tmp_path / "results.json").read_text())["found"] == {"a": {"ok": True}, "b": 3}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"found": {}}', '{"settings": {}, "found": 3}', "\0"])
def test_another_file_is_not_taken_for_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="choose another --out"):
        Results(tmp_path, {})
    assert (tmp_path / "results.json").read_text() == text


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    Results(tmp_path, {"tiny": True}).add("a", 1)
    with pytest.raises(ValueError, match="tiny True, now False"):
        Results(tmp_path, {"tiny": False})


def fake_work(calls):
    def result(name, error=None):
        def run():
            calls.append(name)
            if error is not None:
                raise error
            return {"ok": True, "found": "fine"}

        return name, run

    return lambda tiny: iter([result("first"), result("second", RuntimeError("no such kernel")), result("third")])


def test_a_stopped_run_goes_on_behind_the_last_result(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "work", fake_work(calls))
    results = Results(tmp_path, {"machine": "m"})
    gpu.measure_all(results, True, until=lambda: len(calls) >= 2)
    assert calls == ["first", "second"]
    page = (tmp_path / "results.md").read_text()
    assert "2 results, 1 not ok: second" in page
    assert "RuntimeError: no such kernel" in page
    gpu.measure_all(Results(tmp_path, {"machine": "m"}), True, until=lambda: False)
    assert calls == ["first", "second", "third"]


def test_a_device_that_failed_ends_the_process_after_the_result_is_kept(tmp_path, monkeypatch):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken():
        raise error

    monkeypatch.setattr(gpu, "work", lambda tiny: iter([("first", broken)]))
    with pytest.raises(SystemExit, match="run the same command again"):
        gpu.measure_all(Results(tmp_path, {"machine": "m"}), True, until=lambda: False)
    assert "first" in Results(tmp_path, {"machine": "m"})


def test_a_wrong_number_is_found():
    x = torch.rand(2, 8)
    right = gpu_checks.against_float64(lambda a: a.square(), [x], limit=1e-5)
    wrong = gpu_checks.against_float64(lambda a: a.square() + (a.dtype == torch.float32) * 1e-3, [x], limit=1e-5)
    slope = gpu_checks.against_float64(
        lambda a: a.square() if a.dtype == torch.float64 else a * a.detach(), [x], limit=1e-5
    )
    broken = gpu_checks.against_float64(lambda a: a / (a.dtype == torch.float64), [x], limit=1e-5)
    assert [each["ok"] for each in (right, wrong, slope, broken)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out"),
        (["--out", "x"], "add --tiny"),
        (["--out", "x", "--tiny", "--minutes", "0"], "more than 0"),
        (["--out", "x", "--tiny", "--data", "no_such_folder"], "no_such_folder"),
        (["--out", __file__, "--tiny"], "cannot be written"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="without CUDA only")
def test_what_cannot_be_run_is_said(arguments, words, capsys):
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert words in capsys.readouterr().err


def test_a_folder_of_other_images_is_refused(tmp_path):
    from qa_hooks.images import save_image

    for number in range(3):
        save_image(torch.zeros(3, 16, 16, dtype=torch.uint8), tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="400 images of 32x32"):
        gpu.load_training(str(tmp_path), 100)


@pytest.mark.filterwarnings("ignore")
def test_the_training_leaves_a_table_and_stops_in_time(tmp_path):
    real = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    asked = iter([False, False, True])
    done = list(train(real, [0], until=lambda: next(asked), every=2, n=40, extractor="random", batch=8))
    assert [each["steps"] for each in done] == [2, 3]
    results = Results(tmp_path, {"machine": "m"})
    gpu.keep(results, gpu.TRAINING, {**done[-1], "images": "noise", "ok": None})
    page = (tmp_path / "results.md").read_text()
    assert "After 3 generator steps each, n = 40, in the features of random, noise" in page
    assert all(f"| {variant} | 0 |" in page for variant in VARIANTS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_of_it_runs(tmp_path):
    gpu.main(["--out", str(tmp_path), "--tiny"])
    found = json.loads((tmp_path / "results.json").read_text())["found"]
    assert not [name for name, result in found.items() if result["ok"] is False and "float64" in name]
    assert not [name for name, result in found.items() if "trace" in result]
    assert {row["variant"] for row in found["training"]["rows"]} == {"plain", "SSIM", "NIQE, hinge"}


def test_checks_run_without_tf32_and_leave_the_setting_as_it_was():
    before = torch.backends.cudnn.allow_tf32
    assert gpu_checks.without_tf32(lambda: torch.backends.cudnn.allow_tf32) is False
    with pytest.raises(ZeroDivisionError):
        gpu_checks.without_tf32(lambda: 1 / 0)
    assert torch.backends.cudnn.allow_tf32 == before
