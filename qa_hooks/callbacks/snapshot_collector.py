"""Images that the model makes as it trains, kept in a folder with their step: what snapshot scorers are fitted on."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.files import check_writable
from qa_hooks._base.random import mixed_key
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.images import Range, save_image, to_uint8
from qa_hooks.sources.samples import Sample


class SnapshotCollector(SamplingMonitor):
    """Writes some samples of each stage of a run as `folder/step_00001000/0000.png`, ...

    `SnapshotScorer.fit_snapshots(folder, real)` learns from them what later and therefore better images look like. Each
    step has its own noise. A step's folder appears whole or not at all, and replaces an earlier attempt's, so a run
    that is resumed goes on where it was. With several processes the first one samples and writes.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, as in `SampleGrid`.
        folder: one for each run.
        every: steps between two snapshots. The paper has 4000 of 50 images; 20 to 50 will do.
        n: images of a snapshot.
        seed: of the noise.
        value_range: what the numbers of the samples mean; samples are clamped to it.
        keep: at most so many snapshots, for runs whose length is not known: between the first and the last, the one
            that is nearest to its neighbours goes. None keeps all.

    Example:
        >>> import tempfile
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Sigmoid())
        >>> sample = lambda n, generator: net(torch.randn(n, 8, generator=generator))
        >>> collector = SnapshotCollector(sample, folder=tempfile.mkdtemp(), every=100)
    """

    def __init__(
        self,
        sample: Sample,
        *,
        folder: str | Path,
        every: int = 500,
        n: int = 50,
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
        keep: int | None = None,
    ) -> None:
        super().__init__(sample, Path(folder).name, every=every, n=n, seed=seed, value_range=value_range)
        self.keep = check_count("keep", keep, least=2) if keep is not None else None
        self.folder = Path(folder)
        check_writable(self.folder, name="folder")

    def on_train_start(self, ctx: Context) -> None:
        later = [path.name for path in self._finished() if _step(path) > ctx.step]
        if ctx.rank == 0 and later:
            warn(
                f"{self.folder} already holds {later[-1]}, and this run is at step {ctx.step}: snapshots of two runs "
                "would be mixed; give each run its own folder (a run that is resumed will replace its own)"
            )

    def noise(self, ctx: Context) -> int:
        """The seed of this step's samples: another one at each step."""
        return mixed_key(self.seed, ctx.step)

    def local(self, ctx: Context) -> None:
        if ctx.rank != 0:
            return
        target = self.folder / f"step_{ctx.step:08d}"
        partial, old = self.folder / f".{target.name}.partial", self.folder / f".{target.name}.old"
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        for start, samples in self.blocks(ctx):
            if not bool(torch.isfinite(samples).all()):
                raise ValueError(f"the samples of step {ctx.step} are not finite")
            for index, image in enumerate(to_uint8(samples, self.value_range).cpu(), start):
                save_image(image, partial / f"{index:04d}.png")
        if target.exists():  # a folder that is not empty cannot be replaced in one move
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        self._thin()

    def _finished(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("step_*") if path.name[5:].isdecimal()), key=_step)

    def _thin(self) -> None:
        finished = self._finished()
        while self.keep is not None and len(finished) > self.keep:
            steps = [_step(path) for path in finished]
            nearest = min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] - steps[i - 1])
            shutil.rmtree(finished.pop(nearest))


def _step(path: Path) -> int:
    return int(path.name[5:])
