"""`qa-hooks demo sr` and `qa-hooks demo diffusion`: a minute or two each, from nothing to a table and a picture."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks._base.checks import check_count
from qa_hooks._base.files import check_writable
from qa_hooks._base.progress import counted
from qa_hooks.callbacks import Hooks, PerceptionDistortion, RewardGuard, SampleGrid
from qa_hooks.data.low_resolution import bicubic_degradation
from qa_hooks.demo.data import load_digits_images
from qa_hooks.demo.diffusion import train_digits_pipeline
from qa_hooks.demo.super_resolution import SRNet, fidelity, super_resolve
from qa_hooks.demo.tables import write_table
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.drawing.named_rows import named_rows
from qa_hooks.evaluation import make_reference
from qa_hooks.evaluation.measure import measure
from qa_hooks.features import create_extractor
from qa_hooks.images import save_image, to_uint8
from qa_hooks.losses import ScoreLoss, SSIMLoss
from qa_hooks.scorers import PSNR, GMMScorer, create_scorer

SCALE, CROP, BATCH = 2, 48, 16


def run_sr_demo(out: str | Path, *, steps: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """Train a small network on one photograph with L1, and with L1 and an SSIM loss; judge both on another photograph.

    Args:
        out: folder for the TensorBoard runs and `strip.png`.
        steps: of each training.
        seed: of weights and crops.

    Returns:
        The rows of the table: "variant", "PSNR", "SSIM", "NIQE".
    """
    from sklearn.datasets import load_sample_images

    check_count("steps", steps)
    out = Path(out)
    check_writable(out, name="out")
    images = (torch.tensor(image, dtype=torch.uint8, device="cpu") for image in load_sample_images().images)
    train, held_out = (image.permute(2, 0, 1).float() / 255 for image in images)
    low = bicubic_degradation(held_out[:, : held_out.shape[1] // SCALE * SCALE], SCALE)[None]
    niqe = create_scorer("niqe_bsd100")
    rows, strip = [], {}
    for variant, weight in (("bicubic", None), ("L1", 0.0), ("L1 + SSIM loss", 0.1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = SRNet(SCALE)
        if weight is not None:

            def restored(n: int, _: torch.Generator, net: SRNet = net) -> Tensor:
                enlarged: Tensor = net(low)
                return enlarged[:n]

            truth = held_out[None, :, : SCALE * low.shape[2]]
            psnr = PSNR(channel="y", crop_border=SCALE)  # the one of the table
            axes = PerceptionDistortion(niqe, psnr, images=restored, reference=truth, every=max(1, steps // 6))
            ssim = SSIMLoss(weight=weight)
            optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
            batches = _crops(train, seed)
            with Hooks([axes], log_dir=out / _folder(variant), track={"ssim": ssim}).attach(optimizer):
                for _ in counted(range(steps), variant, unit="step"):
                    lr, hr = next(batches)
                    pred = net(lr)
                    loss = F.l1_loss(pred, hr) + ssim(pred, hr)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        outputs, references = super_resolve(net, [held_out], SCALE)
        found = fidelity(outputs, references, SCALE)
        rows.append({"variant": variant, "PSNR": f"{found['psnr']:.2f}", "SSIM": f"{found['ssim']:.4f}",
                     "NIQE": f"{float(niqe(outputs[0])):.2f}"})  # fmt: skip
        strip[f"{variant}\nPSNR {found['psnr']:.2f}"] = outputs[0][0]
    strip["the photograph"] = references[0][0]
    corner = [to_uint8(image[None, :, 120:280, 200:360])[0] for image in strip.values()]
    save_image(contact_sheet(corner, list(strip), columns=len(strip)), out / "strip.png")
    _show(rows, out, "strip.png", "PSNR and SSIM: higher is better, on luma. NIQE: lower is better.")
    return rows


def run_diffusion_demo(
    out: str | Path, *, steps: int = 600, reward_steps: int = 20, samples: int = 256, seed: int = 0
) -> list[dict[str, Any]]:
    """Train a small diffusion model of digits, then tune it on a score, freely and held by a KL term.

    Args:
        out: folder for the model, the TensorBoard runs and `samples.png`.
        steps: of the model's training; a model that was trained there before is read.
        reward_steps: of each tuning.
        samples: that each row is measured on.
        seed: of everything.

    Returns:
        The rows of the table: "model", "reward", "FD", "precision", "recall", the last three with intervals.
    """
    from qa_hooks.integrations.diffusers import PipelineSampler, RewardFinetuner, reward_sample
    from qa_hooks.integrations.peft import inject_lora

    check_count("steps", steps), check_count("reward_steps", reward_steps), check_count("samples", samples, least=12)
    out = Path(out)
    check_writable(out, name="out")
    digits = load_digits_images().train
    real = (digits + 1) / 2
    base = train_digits_pipeline(digits, out / "base", steps=steps, seed=seed)
    extractor = create_extractor("random")
    reference = make_reference(extractor, real, progress=False)
    scorer = GMMScorer("random", components=1, pca=16).fit(real, progress=False)
    ceiling = float(scorer(real[:400]).median())
    rows, strip = [], {}
    for model, kl_weight in (("base", None), ("reward", 0.0), ("reward + KL", 100.0)):
        pipe = copy.copy(base)
        pipe.unet = copy.deepcopy(base.unet)
        sample = PipelineSampler(pipe, num_inference_steps=10, batch_size=128)
        if kl_weight is not None:
            adapters = inject_lora(pipe.unet, rank=8)
            optimizer = torch.optim.AdamW(adapters, lr=1e-3)

            def trained(generator: torch.Generator, pipe: Any = pipe) -> Tensor:
                noise = torch.randn(32, 1, 16, 16, generator=generator, dtype=torch.float32, device="cpu")
                return reward_sample(pipe.unet, pipe.scheduler, noise, num_steps=10, method="last", k=1)

            loss_of = ScoreLoss(scorer, ceiling=ceiling)
            tuner = RewardFinetuner(trained, loss_of, denoiser=pipe.unet, kl_weight=kl_weight, seed=seed)
            every = max(1, reward_steps // 2)
            guard = RewardGuard(scorer, sample=sample, real=real, n=64, every=every, extractor=extractor)
            callbacks = [guard, SampleGrid(sample, every=every, n=16)]
            with Hooks(callbacks, log_dir=out / _folder(model), track={"reward": tuner}, log_every=5).attach(optimizer):
                for _ in counted(range(reward_steps), model, unit="step"):
                    loss, _ = tuner.step(tuner.generator())
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(adapters, 1.0)
                    optimizer.step()
        images = sample(samples, torch.Generator().manual_seed(seed + 1))
        with torch.no_grad():
            found = measure(extractor(to_uint8(images)), reference, ["fd", "pr"], extractor=extractor)
            reward = float(scorer(images).mean())
        cells = {name: f"{found[name].value:.2f} [{found[name].low:.2f}, {found[name].high:.2f}]"
                 for name in ("fd", "precision", "recall")}  # fmt: skip
        rows.append({"model": model, "reward": f"{reward:.1f}", "FD": cells.pop("fd"), **cells})
        strip[f"{model}: reward {reward:.1f}"] = to_uint8(images[:12])
    save_image(named_rows(strip, scale=4), out / "samples.png")
    _show(rows, out, "samples.png", "FD and recall say what the reward costs (untrained features).")
    return rows


def _folder(name: str) -> str:
    return name.replace(" ", "_").replace("_+_", "_")


def _crops(image: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Low-resolution images and their ground truths, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        found = []
        for _ in range(BATCH):
            top, left = (
                int(torch.randint(side - CROP, (), generator=generator, device="cpu")) for side in image.shape[1:]
            )
            found.append(image[:, top : top + CROP, left : left + CROP])
        hr = torch.stack(found)
        yield torch.stack([bicubic_degradation(crop, SCALE) for crop in hr]), hr


def _show(rows: list[dict[str, Any]], out: Path, picture: str, note: str) -> None:
    print(f"\n{write_table(list(rows[0]), [list(row.values()) for row in rows])}\n\n{note}")
    print(f"{out / picture}\ntensorboard --logdir {out}", flush=True)
