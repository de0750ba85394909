"""An A-FINE of two processes: the first one trains, and both have the scorer of one process."""

from __future__ import annotations

import warnings

import torch
from ranks import two_ranks

from qa_hooks.losses import AFINELoss
from qa_hooks.scorers import FittedAFINE


def images() -> torch.Tensor:
    coarse = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (36, 36), mode="bilinear")


def fit(source: object) -> dict:
    warnings.simplefilter("ignore")
    scorer = FittedAFINE({"type": "random", "width": 2})
    scorer.fit(source, steps=4, crop=32, warn_below=0, progress=False)
    pred = images()[:2].flip(3).requires_grad_()
    AFINELoss(scorer)(pred, images()[:2]).backward()
    held = {name: float(value) for name, value in scorer.held_out.items()}
    scores = scorer(images().flip(3), reference=images())
    return {"scores": scores, "gradient": pred.grad, "held": held, "fingerprint": scorer.fingerprint}


def on_two(rank: int) -> dict:
    mine = images()[:3] if rank == 0 else images()[3:]
    result = {"shared": fit(images()), "parts": fit(iter([mine])), "error": ""}
    try:
        fit(torch.full((4, 3, 36, 36), 0.5))
    except (ValueError, RuntimeError) as error:
        result["error"] = str(error)
    return result


def test_two_processes_fit_what_one_does(tmp_path):
    first, second = two_ranks(on_two, tmp_path)
    alone = fit(images())
    for result in (first, second):
        assert torch.equal(result["shared"]["scores"], alone["scores"])
        assert torch.equal(result["shared"]["gradient"], alone["gradient"])
        assert result["shared"]["held"] == alone["held"]
        assert result["shared"]["fingerprint"] == alone["fingerprint"]
        assert torch.equal(result["parts"]["scores"], first["parts"]["scores"])
        assert "at least two" in result["error"]
