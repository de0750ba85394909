"""`MultiGTDataset` as a data set that an SR framework builds from its config, with everything of ours under `qa`.

    train:
      name: hggt                          type: QAMultiGTDataset
      dataroot_gt: data/hggt              gt_size: 256          (neosr: patch_size, of the small image)
      dataroot_lq: data/lq                optional; else made by qa.degradation
      qa: {layout: hggt, strategy: smp, table: musiq.csv, temperature: 0.05, repeat: 10}

Draws belong to (seed, rank, epoch, index). These frameworks tell their sampler the epoch and nobody else, and enlarge a
data set by repeating indices; so `register` makes the sampler pass the epoch on, and `repeat` takes the place of
`dataset_enlarge_ratio`: a repeated index would be the same crop again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from qa_hooks.data import Choice, GroundTruths, MultiGTDataset, QualityTable
from qa_hooks.data.low_resolution import HGGTDegradation, bicubic_degradation
from qa_hooks.integrations.sr.conventions import Framework, check_options, default_device_cpu, keywords, option

ITEMS_PER_EPOCH = 2000  # batches, which traiNNer's "auto" enlarges a small set to
OURS = ("root", "degradation", "table")
THEIRS = ("scale", "crop", "flips", "rotations", "lq", "rank", "degradation", "table")


class FrameworkDataset(Dataset[dict[str, Any]]):
    """What the registered data set is; see the module.

    Args:
        opt: the data set's block of the config, `scale` included.

    Raises:
        ValueError: an unknown key, a missing one, a phase other than "train"; and those of `MultiGTDataset`.
    """

    framework: Framework
    label = "images"

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.opt, name = opt, type(self).__name__
        phase = str(option(opt, "phase", "train"))
        if phase != "train":
            raise ValueError(f"{name} is for training; datasets.{phase} wants the framework's own paired data set")
        where = "datasets.train.qa"
        known = [name for part in (MultiGTDataset, GroundTruths, Choice) for name in keywords(part, *THEIRS)]
        qa = check_options(where, option(opt, "qa", {}), [*OURS, *known])
        root = qa.pop("root", None) or _one("datasets.train.dataroot_gt", option(opt, "dataroot_gt"))
        if root is None:
            raise ValueError("datasets.train.dataroot_gt is missing: the folder of originals and candidates")
        scale, crop = option(opt, "scale"), option(opt, self.framework.crop)
        if scale is None or crop is None:
            raise ValueError(f"{'scale' if scale is None else f'datasets.train.{self.framework.crop}'} is missing")
        with default_device_cpu():
            self.data = MultiGTDataset(
                root,
                scale=int(scale),
                crop=int(crop) * (int(scale) if self.framework.crop_is_lq else 1),
                flips=bool(option(opt, "use_hflip", True)),
                rotations=bool(option(opt, "use_rot", False)),
                lq=_one("datasets.train.dataroot_lq", option(opt, "dataroot_lq")),
                table=_table(qa.pop("table", None)),
                degradation=_degradation(f"{where}.degradation", qa.pop("degradation", None)),
                **qa,
            )
        self._enlarge(opt)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with default_device_cpu():
            item = self.data[index]
        path = item.pop("path")
        return {**item, "gt_path": path, "lq_path": path}

    def set_epoch(self, epoch: int) -> None:
        """Called by the framework's sampler, once `register` has run."""
        self.data.set_epoch(epoch)

    def _enlarge(self, opt: Any) -> None:
        ratio = option(opt, "dataset_enlarge_ratio", 1)
        if isinstance(opt, Mapping):
            if ratio != 1:  # already read by the trainer, so that it cannot be changed here
                raise ValueError(
                    f"datasets.train.dataset_enlarge_ratio={ratio} would repeat the same crops; remove it and set "
                    f"datasets.train.qa.repeat: {ratio}"
                )
            return
        if ratio == "auto":
            ratio = max(ITEMS_PER_EPOCH * int(option(opt, "batch_size_per_gpu", 1)) // len(self.data), 1)
        self.data.repeat *= int(ratio)
        opt.dataset_enlarge_ratio = 1


def framework_dataset(framework: Framework) -> type[FrameworkDataset]:
    """The class to register."""
    facts = {"framework": framework, "__module__": __name__, "__doc__": FrameworkDataset.__doc__}
    return type("qa_multi_gt" if framework.snake_names else "QAMultiGTDataset", (FrameworkDataset,), facts)


def pass_epoch_on(sampler: Any) -> None:
    """Make a sampler class tell its data set the epoch; once."""
    original = sampler.set_epoch
    if getattr(original, "__module__", "") == __name__:
        return

    def set_epoch(self: Any, epoch: int) -> None:
        original(self, epoch)
        if isinstance(self.dataset, FrameworkDataset):
            self.dataset.set_epoch(epoch)

    sampler.set_epoch = set_epoch


def _one(where: str, paths: Any) -> Any:
    if isinstance(paths, (list, tuple)):
        if len(paths) != 1:
            raise ValueError(f"{where} must be one folder, got {len(paths)}; layout: csv joins several")
        return paths[0]
    return paths


def _table(path: Any) -> QualityTable | None:
    return None if path is None else QualityTable.load(path)


def _degradation(where: str, given: Any) -> Any:
    """ "bicubic", "hggt", or a mapping with `type` and options of `HGGTDegradation`."""
    kind, options = (given.get("type"), dict(given)) if isinstance(given, Mapping) else (given, {})
    options.pop("type", None)
    if given is None:
        return None
    if kind == "hggt":
        return HGGTDegradation(**check_options(where, options, inspect.signature(HGGTDegradation).parameters))
    if kind == "bicubic" and not options:
        return bicubic_degradation
    raise ValueError(f"{where} must be bicubic, hggt or a mapping with type: hggt, got {given!r}")
