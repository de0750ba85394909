"""The super-resolution examples, run as a user runs them, with few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from qa_hooks.demo.enhancement import ENHANCERS, sharpen, soften, votes
from qa_hooks.demo.super_resolution import SRNet, fidelity, load_photographs, super_resolve
from qa_hooks.images import save_image

ROOT = Path(__file__).resolve().parents[2]


def test_the_ground_truth_example_ends_with_its_tables_and_a_picture(tmp_path, photographs):
    pytest.importorskip("skimage")
    data = tmp_path / "photographs"
    data.mkdir()
    wide = torch.cat(
        [torch.cat([*photographs[:3]], 2), torch.cat([*photographs[1:]], 2)], 1
    )  # NIQE wants 37 sharp blocks
    for number in range(20):
        moved = wide.roll((13 * number, 29 * number), (1, 2))
        save_image((moved * 255).round().byte(), data / f"{number:02d}.png")
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "examples/sr_ground_truth.py"), "--data", str(data), "--out", str(out)]
    command += ["--steps", "4", "--rank-steps", "4", "--seeds", "1", "--metrics", "ssim"]
    strategies = ["--strategies", "originals", "smp", "amo"]
    call = partial(subprocess.run, capture_output=True, text=True, cwd=ROOT)
    printed = call([*command, *strategies], check=True).stdout
    assert "| photographs, 4 held out | PSNR | SSIM x100 | PSNR clean | rank | rank B | NIQE | ssim |" in printed
    assert "| held-out originals | 100.00 | 100.00 |" in printed
    assert "| originals | 100 | 0 | 0 | 0 | 0 | 0 | 0 |" in printed
    found = json.loads((out / "results.json").read_text())["found"]
    results = {run["strategy"]: run for run in found.values() if "strategy" in run}
    assert set(results) == {"originals", "smp", "amo"}  # in the order in which they ended
    for run in results.values():
        assert sum(run["chosen"]) == pytest.approx(1, abs=1e-6)
        assert 15 < run["scores"]["photographs"]["PSNR"] < 60
    assert (out / "strips.png").stat().st_size > 10_000
    assert len(list((out / "tensorboard").glob("*_1/events*"))) == 3
    lines = printed.splitlines()
    named = lambda name: next(line for line in lines if line.startswith(f"| {name} |")).split(" | ")  # noqa: E731
    best, own = named("gold standard"), named("held-out originals")
    assert [float(value) for value in best[1:3]] == [100, 100]
    assert all(float(a) >= float(b) for a, b in zip(best[3:6], own[3:6], strict=True))
    assert float(best[6]) <= float(own[6])  # NIQE: lower is better
    again = call([*command, *strategies, "upos"], check=True)
    assert "3 of 4 were done before" in again.stderr
    rows = [line for line in lines if line.startswith(("| originals", "| smp", "| gold"))]
    assert len(rows) == 5  # originals and smp in two tables each
    assert all(row in again.stdout for row in rows)
    other = call([*command, "--steps", "5"])
    assert other.returncode == 1
    assert "steps 4, now 5" in other.stderr
    assert "choose another --out" in other.stderr


def test_photographs_to_train_on_to_fit_on_and_held_out_are_different_ones(tmp_path):
    for number in range(20):
        save_image(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / f"{number:02d}.png")
    parts = load_photographs(tmp_path)
    values = [[round(float(image.mean()) * 255) for image in part] for part in (parts.train, parts.fit, parts.held_out)]
    assert values == [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15], [16, 17, 18, 19]]
    for number in range(11):
        (tmp_path / f"{number:02d}.png").unlink()
    with pytest.raises(ValueError, match="at least 10"):
        load_photographs(tmp_path)


def test_before_training_the_net_is_bicubic_interpolation(photographs):
    net = SRNet(3)
    assert 40_000 < sum(parameter.numel() for parameter in net.parameters()) < 50_000
    images = [photographs[0, :, :100, :131], photographs[1]]
    bicubic = torch.nn.Upsample(scale_factor=3, mode="bicubic")
    outputs, references = super_resolve(net, images, 3)
    expected, _ = super_resolve(bicubic, images, 3)
    assert [tuple(reference.shape) for reference in references] == [(1, 3, 99, 129), (1, 3, 192, 192)]
    assert all(torch.equal(own, other) for own, other in zip(outputs, expected, strict=True))
    skimage = pytest.importorskip("skimage.metrics")
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    luma = lambda image: ((image * weights).sum(1) + 16 / 255)[0, 3:-3, 3:-3].double().numpy()  # noqa: E731
    pairs = [(luma(r), luma(o)) for r, o in zip(references, outputs, strict=True)]
    psnr = sum(skimage.peak_signal_noise_ratio(r, o, data_range=1) for r, o in pairs) / 2
    assert fidelity(outputs, references, 3)["psnr"] == pytest.approx(psnr, abs=1e-3)


def test_the_viewers_like_sharper_edges_and_no_exaggeration(photographs):
    soft = soften(list(photographs[:2]))[1]
    liked = {amount: votes(soft, sharpen(soft, amount)) for amount in (0.0, 0.8, 6.0)}
    assert liked == {0.0: 0, 0.8: 3, 6.0: 0}
    generator = torch.Generator().manual_seed(0)
    assert votes(soft, ENHANCERS["6_waxy"](soft, generator)) == 0


def test_enhancers_and_faults_do_what_their_names_say(photographs):
    image, generator = photographs[0], torch.Generator().manual_seed(0)
    detail = {name: float(enhance(image, generator).diff(dim=-1).abs().mean()) for name, enhance in ENHANCERS.items()}
    assert detail["6_waxy"] < detail["original"] < detail["1_sharp"] < detail["2_sharper"] < detail["4_oversharp"]
    assert detail["1_sharp"] < detail["5_grainy"]
    asis, soft, grainy = soften([image, image, image])
    assert torch.equal(asis, image)
    assert soft.diff(dim=-1).abs().mean() < grainy.diff(dim=-1).abs().mean() < image.diff(dim=-1).abs().mean()
