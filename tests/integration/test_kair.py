"""The lines of docs/sr_frameworks.md for KAIR, against a model that has what they touch of KAIR's `ModelPlain`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader

PAGE = Path(__file__).parents[2] / "docs" / "sr_frameworks.md"


def plain_model() -> SimpleNamespace:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(3, 3, 3, padding=1))
    nn.init.dirac_(net[1].weight)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    return SimpleNamespace(netG=net, G_optimizer=optimizer, G_lossfn=nn.L1Loss(), device=torch.device("cpu"))


def test_the_lines_for_kair_run_in_its_loop(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text().split("## KAIR")[1], re.M | re.S)
    high = [torch.rand(3, 32, 40), torch.rand(3, 40, 32)]
    scope = {
        "torch": torch,
        "model": (model := plain_model()),
        "opt": {"scale": 4, "path": {"log": str(tmp_path)}},
        "test_loader": DataLoader([{"L": nn.functional.avg_pool2d(image, 4), "H": image} for image in high]),
    }
    drawn = torch.get_rng_state()
    exec(code.replace("every=5000", "every=2"), scope)
    assert torch.equal(torch.get_rng_state(), drawn)
    for _ in range(4):  # as `optimize_parameters` does
        low = torch.rand(2, 3, 8, 8)
        model.G_optimizer.zero_grad()
        model.G_lossfn(model.netG(low), nn.functional.interpolate(low, scale_factor=4)).backward()
        model.G_optimizer.step()
    scope["hooks"].close()
    assert scope["psnr"].last["step"] == 4
    assert scope["psnr"].last["n"] == 2
    found = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (tmp_path / "best" / found["path"]).is_file()
    assert found["spec"].startswith("psnr_crop4[")
    assert scope["ssim"].terms["ssim_loss"] > 0
