"""A Diffusers training script (DDPM, UNet2DModel, Accelerate) on handwritten digits, watched by qa_hooks.

    python examples/diffusers_digits.py                             # 600 steps, a few minutes on a CPU
    torchrun --nproc_per_node 2 examples/diffusers_digits.py        # the same on two processes
    python examples/diffusers_digits.py --resume                    # goes on where a killed run was saved last
    tensorboard --logdir runs/diffusers_digits

Lines marked `# qa_hooks` are what such a script gains. It ends with a table, a picture and a TensorBoard run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss
from tqdm import tqdm

from qa_hooks import GMMScorer, Hooks, NaNGuard, SampleGrid, ScoreMonitor  # qa_hooks
from qa_hooks.demo import Evaluator, load_digits_images
from qa_hooks.images import make_grid, save_image, to_uint8
from qa_hooks.integrations.accelerate import attach  # qa_hooks
from qa_hooks.integrations.diffusers import PipelineSampler  # qa_hooks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help="images of one micro-step")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-steps of one optimizer step")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--every", type=int, default=100, help="steps between two looks at the samples")
    parser.add_argument("--sampling-steps", type=int, default=20, help="of the DDIM sampler")
    parser.add_argument("--samples", type=int, default=512, help="images of the final table")
    parser.add_argument("--width", type=int, default=32, help="channels of the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the state saved in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusers_digits"), help="run, state and samples.png")
    return parser.parse_args()


def main() -> None:
    args = parse()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=args.accumulation,
        mixed_precision=args.mixed_precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(str(args.out), logging_dir=str(args.out)),
    )
    accelerator.init_trackers("digits")
    set_seed(args.seed)
    digits = load_digits_images()  # (N, 1, 16, 16) in [-1, 1]
    loader = torch.utils.data.DataLoader(digits.train, batch_size=args.batch_size, shuffle=True)
    model = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(args.width, 2 * args.width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    noise_scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    averaged = UNet2DModel.from_config(accelerator.unwrap_model(model).config).to(accelerator.device)
    ema = EMAModel(averaged.parameters(), decay=0.99)
    accelerator.register_for_checkpointing(ema)

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:  # qa_hooks: the averaged weights, in [0, 1]
        ema.copy_to(averaged.parameters())
        pipeline = DDIMPipeline(averaged, DDIMScheduler.from_config(noise_scheduler.config))
        return PipelineSampler(pipeline, batch_size=128, num_inference_steps=args.sampling_steps)(n, generator)

    real = (digits.train + 1) / 2
    scorer = GMMScorer({"type": "random", "width": 16}, 10, pca=16).fit(real, progress=False)  # qa_hooks
    scorer.to(accelerator.device)
    hooks = Hooks(  # qa_hooks: what to watch; values and pictures go to the accelerator's trackers
        [
            SampleGrid(sample, every=args.every, n=64),
            ScoreMonitor(scorer, every=args.every, sample=sample, n=128),
            NaNGuard("stop", every=10),
        ],
    )
    attach(accelerator, hooks, optimizer=optimizer)  # qa_hooks
    if args.resume:
        accelerator.load_state(str(args.out / "state"))

    bar = tqdm(initial=hooks.step_count, total=args.steps, unit="step", disable=None)
    while hooks.step_count < args.steps and not hooks.should_stop:
        for images in loader:
            with accelerator.accumulate(model):
                noise = torch.randn_like(images)
                t = torch.randint(noise_scheduler.config.num_train_timesteps, (len(images),), device=images.device)
                prediction = model(noise_scheduler.add_noise(images, noise, t), t).sample
                loss = mse_loss(prediction.float(), noise)
                hooks.record(loss=loss)  # qa_hooks
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(accelerator.unwrap_model(model).parameters())
                bar.update()
                if hooks.step_count % args.every == 0:
                    accelerator.save_state(str(args.out / "state"))
            if hooks.step_count >= args.steps or hooks.should_stop:
                break
    bar.close()
    hooks.close()  # qa_hooks
    if accelerator.is_main_process:
        fakes = 2 * sample(args.samples, torch.Generator().manual_seed(1)).cpu() - 1
        evaluator = Evaluator(digits)
        images = {f"generated (n={len(fakes)})": fakes, "held-out real": digits.test}
        rows = {name: evaluator.evaluate(values) for name, values in images.items()}
        print("\n| images |", " | ".join(f"{metric}_{evaluator.name}" for metric in rows["held-out real"]), "|")
        print("|---|---|---|")
        for name, row in rows.items():
            print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row.values())} |")
        save_image(make_grid(to_uint8(fakes[:64], (-1, 1)), scale=3), args.out / "samples.png")
        print(f"\n{args.out / 'samples.png'}\ntensorboard --logdir {args.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
