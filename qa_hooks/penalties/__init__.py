"""Critic penalties: QAGAN's SSIM and NIQE terms (2019), and the gradient and drift penalties they stand beside.

Each penalty is one term for the critic's loss and nothing else: the adversarial term stays the user's, so either sign
convention works, and the generator's loss is not touched.
"""

from qa_hooks.penalties.attach import AttachedPenalty, attach_penalty
from qa_hooks.penalties.gradient_model import fit_gradient_model
from qa_hooks.penalties.niqe import NIQEPenalty
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty
from qa_hooks.penalties.qagan import QAGANPenalty
from qa_hooks.penalties.terms import DriftPenalty, GradientPenalty, SSIMPenalty

__all__ = [
    "AttachedPenalty",
    "CriticPass",
    "CriticPenalty",
    "DriftPenalty",
    "GradientPenalty",
    "NIQEPenalty",
    "QAGANPenalty",
    "SSIMPenalty",
    "attach_penalty",
    "fit_gradient_model",
]
