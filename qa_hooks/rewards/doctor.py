"""What can a metric be used for? Every scorer is tried before it is trusted: as a reward, as a monitor, or not at all.

A score that looks reasonable in a table can still have no gradient, a gradient at the wrong image, or one that promises
what the score does not do; it can depend on its neighbours in the batch, or be climbed without any image getting
better. `diagnose` measures these on pictures drawn on the spot (dead leaves, which have the statistics of photographs)
or on yours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.progress import Progress
from qa_hooks.drawing.tables import text_table
from qa_hooks.functional.degradations import dead_leaves, degrade
from qa_hooks.images import as_tensor, check_images, list_images, load_image, to_unit
from qa_hooks.rewards.doctor_checks import CHECKS, run_check
from qa_hooks.rewards.doctor_subject import Outcome, Subject, refusal, smallest_side
from qa_hooks.scorers.catalogue import SPECS
from qa_hooks.scorers.scorer import Scorer, check_is_scorer

REWARD, MONITOR, BROKEN = "usable as a reward", "monitor only", "broken"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        scorer: its name.
        findings: one for each check.
        verdict: "usable as a reward", "monitor only" or "broken".
        reasons: the checks that decided it; of one that is usable as a reward those that warn.
    """

    scorer: str
    findings: tuple[Outcome, ...]
    verdict: str
    reasons: tuple[str, ...]

    def __getitem__(self, check: str) -> Outcome:
        return next(finding for finding in self.findings if finding.check == check)

    def failed(self) -> list[str]:
        """The names of the failed checks."""
        return [finding.check for finding in self.findings if finding.verdict == "fail"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = [{"check": finding.check, **finding._asdict()} for finding in self.findings]
        return {"scorer": self.scorer, "findings": findings, "verdict": self.verdict, "reasons": self.reasons}

    def __str__(self) -> str:
        rows = [("", "check", "measured", "threshold")]
        for found in self.findings:
            verdict = found.verdict.upper() if found.verdict == "fail" else found.verdict
            rows.append((verdict, found.check, found.measured, found.threshold))
        reasons = ", ".join(self.reasons)
        why = f", but mind the {reasons}" if self.verdict == REWARD else f" ({reasons})"
        return f"{text_table(rows, numbers=False)}\n\n{self.scorer}: {self.verdict}{why if reasons else ''}"


def diagnose(
    scorer: Scorer, images: Any = None, *, size: int = 256, licence: str | None = None, progress: bool = False
) -> Diagnosis:
    """Try a scorer in every way in which metrics are known to fail; nothing outside changes, the random state included.

    Args:
        scorer: what `create_scorer` returned; it stays on its device.
        images: clean pictures `(N, C, H, W)` in the scorer's range (uint8 is [0, 255]), two or more; the first two are
            used. They are degraded here, and are the references of full-reference scorers. Without them: dead leaves.
        size: the side of the pictures that are drawn; more when the scorer needs more.
        licence: of the scorer, where it is known.
        progress: show each check when stderr is a terminal.

    Returns:
        A `Diagnosis`; printing it gives a table.

    Raises:
        TypeError: not a scorer.
        ValueError: fewer than two images, or images that are too small for the scorer.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> diagnose(create_scorer("psnr"), size=64).verdict
        'usable as a reward'
    """
    check_is_scorer(scorer)
    given = None if images is None else _given(images, scorer)
    with isolated(), torch.inference_mode(False), torch.enable_grad():
        device = scorer.device or torch.device("cpu")
        draw = _drawing(device, 3 if given is None else given.shape[1])
        minimum, reason = smallest_side(scorer, draw)
        if not minimum:
            outcome = Outcome("fail", f"no size is scored: {reason}"[:160], f"<= {size} px", "minimum size")
            return Diagnosis(scorer.name, (outcome,), BROKEN, (outcome.check,))
        clean = draw(max(size, minimum)) if given is None else given.to(device)
        if given is not None and (side := min(clean.shape[-2:])) < minimum and refusal(scorer, clean):
            raise ValueError(f"{scorer.name} needs {minimum} px a side; your {side} are too few")
        generator = torch.Generator().manual_seed(0)
        trial = degrade(degrade(clean, "blur", 1), "noise", 1, generator=generator)
        asked = size if given is None else min(clean.shape[-2:])
        subject = Subject(scorer, clean, trial, minimum, asked, licence or licence_of(scorer))
        findings: list[Outcome] = []
        with Progress(scorer.name, len(CHECKS), unit="check", shown=progress) as bar:
            for check in CHECKS:
                bar.update(0, note=check.name)
                findings.append(run_check(check, subject))
                bar.update()
    failed = [check for check, found in zip(CHECKS, findings, strict=True) if found.verdict == "fail"]
    spoiled = [check for check in failed if check.spoils_scores]
    verdict = BROKEN if spoiled else MONITOR if failed else REWARD
    warned = tuple(finding.check for finding in findings if finding.verdict == "warn")
    reasons = tuple(check.name for check in spoiled or failed)
    return Diagnosis(scorer.name, tuple(findings), verdict, reasons or warned)


def licence_of(scorer: Scorer) -> str:
    """The licence that the scorer states, otherwise the licence in the table of scorers."""
    stated = getattr(scorer, "licence", None)
    known = next((entry.licence for entry in SPECS.values() if entry.cls == type(scorer).__name__), "unknown")
    return stated if isinstance(stated, str) else known


def read_pictures(folder: str | Path, size: int, scorer: Scorer | None = None) -> Tensor:
    """The middle of the first two images of a folder that are large enough, `(2, C, size, size)` uint8.

    Args:
        folder: anything that `list_images` takes.
        size: the side.
        scorer: for which they are, so that an error can say whether a smaller size would do.

    Raises:
        ValueError: fewer than two of them; the message names the largest size that two have.
    """
    crops: list[Tensor] = []
    sides: dict[int, list[int]] = {1: [], 3: []}  # by channels
    for path in list_images(folder):
        image = load_image(path)
        sides[len(image)].append(min(image.shape[1:]))
        top, left = ((side - size) // 2 for side in image.shape[1:])
        if min(top, left) >= 0 and (not crops or len(image) == len(crops[0])):
            crops.append(image[:, top : top + size, left : left + size])
        if len(crops) == 2:
            return torch.stack(crops)
    fits = max((sorted(found)[-2] for found in sides.values() if len(found) > 1), default=0)
    few = f"{folder} holds fewer than two images of at least {size} x {size}"
    if not fits:
        raise ValueError(f"{few} in all, both in colour or both grey")
    if scorer is not None:
        needs, _ = smallest_side(scorer, _drawing(scorer.device or torch.device("cpu"), 3))
        if fits < needs:
            few += f", the largest that two of them hold is {fits}, and {scorer.name} needs {needs} px a side"
            raise ValueError(few)
    raise ValueError(f"{few}; the largest that two of them hold is size={fits}")


def _drawing(device: torch.device, channels: int) -> Callable[[int], Tensor]:
    """Two pictures of a side, the same each time."""

    def draw(side: int) -> Tensor:
        return dead_leaves(2, side, generator=torch.Generator().manual_seed(0), channels=channels).to(device)

    return draw


def _given(images: Any, scorer: Scorer) -> Tensor:
    pictures = check_images("images", as_tensor(images), floating=False)
    if len(pictures) < 2:
        raise ValueError("the doctor needs two images or more, to see whether they disturb each other; got 1")
    return to_unit(pictures[:2].detach().clone(), scorer.value_range).float()
