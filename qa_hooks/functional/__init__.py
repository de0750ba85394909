"""Pure functions on tensors: no state, no files, no randomness of their own."""

from qa_hooks.functional.aggd import aggd
from qa_hooks.functional.frechet import frechet_distance, inception_score
from qa_hooks.functional.gradient_penalty import gradient_penalty
from qa_hooks.functional.ms_ssim import ms_ssim
from qa_hooks.functional.naturalness import naturalness_distance
from qa_hooks.functional.niqe import FeatureConfig, niqe_features
from qa_hooks.functional.ssim import ssim, ssim_distance

__all__ = [
    "FeatureConfig",
    "aggd",
    "frechet_distance",
    "gradient_penalty",
    "inception_score",
    "ms_ssim",
    "naturalness_distance",
    "niqe_features",
    "ssim",
    "ssim_distance",
]
