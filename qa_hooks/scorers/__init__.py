"""Scorers: images in, one number per image out."""

from qa_hooks.scorers.calibration import Calibration
from qa_hooks.scorers.create import create_scorer, load_scorer
from qa_hooks.scorers.full_reference import MSSSIM, PSNR, SSIM
from qa_hooks.scorers.niqe import NIQE, NaturalnessModel
from qa_hooks.scorers.scorer import FunctionScorer, Scorer

__all__ = [
    "MSSSIM",
    "NIQE",
    "PSNR",
    "SSIM",
    "Calibration",
    "FunctionScorer",
    "NaturalnessModel",
    "Scorer",
    "create_scorer",
    "load_scorer",
]
