"""WGAN-GP on handwritten digits with a QAGAN penalty: the whole loop, written out.

    python examples/qagan_digits.py                      # SSIM penalty, 1200 steps, under a minute
    python examples/qagan_digits.py --quality niqe       # NIQE penalty, its model gathered in a warm-up of the run
    python examples/qagan_digits.py --quality none       # plain WGAN-GP, to compare with
    tensorboard --logdir runs/qagan_digits

Lines marked `# qa_hooks` are what a WGAN-GP script gains; its own gradient penalty goes.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from tqdm import trange

from qa_hooks import Hooks, NaNGuard, QAGANPenalty, SampleGrid  # qa_hooks
from qa_hooks.demo import (
    LATENT,
    Evaluator,
    load_digits_images,
    load_folder_images,
    make_critic,
    make_generator,
    update_ema,
)
from qa_hooks.images import make_grid, save_image, to_uint8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", default="ssim", choices=["none", "ssim", "niqe", "both"], help="the quality term")
    parser.add_argument("--weight", type=float, default=0.1, help="of the quality term")
    parser.add_argument("--steps", type=int, default=1200, help="generator steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="a folder of images instead of the digits")
    parser.add_argument("--size", type=int, default=32, help="with --data: 16, 32, 48 or 64")
    parser.add_argument("--out", type=Path, default=Path("runs/qagan_digits"), help="TensorBoard run and samples.png")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # nets this small are slower on more
    data = load_folder_images(args.data, size=args.size) if args.data else load_digits_images()
    real_images = data.train  # (N, C, S, S) in [-1, 1]
    channels, size = real_images.shape[1:3]

    generator, critic = make_generator(size, channels), make_critic(size, channels)
    ema = copy.deepcopy(generator).eval()
    opt_g = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
    decay = lambda step: min(1.0, 1.9 - 1.8 * step / args.steps)  # noqa: E731 - constant, then down to a tenth
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, decay) for optimizer in (opt_g, opt_d)]

    penalty = QAGANPenalty(  # qa_hooks: gradient penalty + quality term + drift, in place of the script's own penalty
        args.quality, value_range=(-1, 1), gp_weight=10.0, quality_weight=args.weight, warmup=max(24, args.steps // 3)
    )
    sample = lambda n, rng: ema(torch.randn(n, LATENT, generator=rng))  # noqa: E731
    hooks = Hooks(  # qa_hooks: what to watch, and where
        [SampleGrid(sample, every=max(1, args.steps // 8), value_range=(-1, 1)), NaNGuard("stop", every=10)],
        log_dir=args.out / f"{args.quality}-seed{args.seed}",
        track={"qagan": penalty},
    )

    with hooks.attach(opt_g):  # qa_hooks
        for _ in trange(args.steps, desc=args.quality, unit="step", disable=None):
            for _ in range(2):
                real = real_images[torch.randint(len(real_images), (64,))]
                with torch.no_grad():
                    fake = generator(torch.randn(64, LATENT))
                real_scores, fake_scores = critic(real), critic(fake)
                d_loss = fake_scores.mean() - real_scores.mean()
                d_loss = d_loss + penalty(
                    critic, real, fake, real_scores=real_scores, fake_scores=fake_scores
                )  # qa_hooks
                opt_d.zero_grad()
                d_loss.backward()
                opt_d.step()
            g_loss = -critic(generator(torch.randn(64, LATENT))).mean()
            opt_g.zero_grad()
            g_loss.backward()
            hooks.record(d_loss=d_loss, g_loss=g_loss)  # qa_hooks
            opt_g.step()
            for schedule in schedules:
                schedule.step()
            update_ema(ema, generator, 0.98)

    with torch.no_grad():
        fakes = sample(2800, torch.Generator().manual_seed(2))
    evaluator = Evaluator(data)
    print(f"\n| images | {' | '.join(f'{m}_{evaluator.name}' for m in evaluator.evaluate(data.test))} |\n|---|---|---|")
    for name, images in ((f"generated, quality={args.quality} (n=2800)", fakes), ("held-out real", data.test)):
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in evaluator.evaluate(images).values())} |")
    picture = args.out / f"{args.quality}-seed{args.seed}.png"
    save_image(make_grid(to_uint8(fakes[:64], (-1, 1)), scale=3), picture)
    print(f"\n{picture}\ntensorboard --logdir {args.out}")


if __name__ == "__main__":
    main()
