"""Stand-ins for BasicSR, traiNNer-redux and neosr: their registries, and models that call what theirs call.

Written from the interfaces of the three; no line is theirs. The real packages are run by the tests that ask for them.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qa_hooks.integrations.sr.conventions import option


class Registry:
    """Keeps objects by their names; asserts that they are new."""

    def __init__(self, lower: bool) -> None:
        self._objects: dict[str, Any] = {}
        self._lower = lower

    def _key(self, name: str) -> str:
        return name.lower() if self._lower else name

    def register(self, part: Any) -> None:
        assert self._key(part.__name__) not in self._objects, part.__name__
        self._objects[self._key(part.__name__)] = part

    def get(self, name: str) -> Any:
        return self._objects[self._key(name)]

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._objects

    def keys(self) -> list[str]:
        return list(self._objects)


class EnlargedSampler:
    """Repeats indices, and knows the epoch."""

    def __init__(self, dataset: Any, num_replicas: int = 1, rank: int = 0, ratio: int = 1) -> None:
        self.dataset, self.epoch, self.ratio = dataset, 0, ratio

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Slots:
    """A model whose losses stand in slots; a discriminator only with `network_d`."""

    def __init__(self, opt: Any) -> None:
        self.opt, self.device, self.is_train = opt, torch.device("cpu"), True
        self.optimizers: list[Any] = []
        torch.manual_seed(0)
        self.net_g = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))
        with_critic = option(opt, "network_d") is not None
        self.net_d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(1)) if with_critic else None
        path = option(option(opt, "path"), "pretrain_network_g")
        if path is not None:
            self.net_g.load_state_dict(torch.load(path, weights_only=True))
        self.init_training_settings()

    def init_training_settings(self) -> None:
        self.cri_pix = nn.L1Loss() if option(option(self.opt, "train"), "pixel_opt") else None
        self.setup_optimizers()

    def setup_optimizers(self) -> None:
        trained = [p for p in self.net_g.parameters() if p.requires_grad]
        self.optimizer_g = torch.optim.Adam(trained, 1e-3)
        self.optimizers.append(self.optimizer_g)
        if self.net_d is not None:
            self.net_d(torch.zeros(1, 3, 32, 32))
            self.optimizer_d = torch.optim.SGD(self.net_d.parameters(), 1e-3)
            self.optimizers.append(self.optimizer_d)

    def feed_data(self, data: dict[str, Any]) -> None:
        self.lq, self.gt = data["lq"], data["gt"]

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        found = self.generator_losses()
        sum(found.values()).backward()
        self.optimizer_g.step()
        if self.net_d is not None:
            self.optimizer_d.zero_grad()
            found["l_d"] = (self.net_d(self.output.detach()) - self.net_d(self.gt)).mean()
            found["l_d"].backward()
            self.optimizer_d.step()
        self.log_dict = self.reduce_loss_dict(found)

    def generator_losses(self) -> dict[str, Any]:
        return {"l_pix": self.cri_pix(self.output, self.gt)}

    def reduce_loss_dict(self, loss_dict: dict[str, Any]) -> dict[str, float]:
        return {name: value.item() for name, value in loss_dict.items()}

    def get_bare_model(self, net: nn.Module) -> nn.Module:
        return net

    def model_to_device(self, net: nn.Module) -> nn.Module:
        return net

    def save(self, epoch: int, current_iter: int) -> None:
        folder = option(option(self.opt, "path"), "models")
        torch.save(self.net_g.state_dict(), f"{folder}/net_g_{current_iter}.pth")
        torch.save([o.state_dict() for o in self.optimizers], f"{folder}/{current_iter}.state")

    def resume_training(self, states: list[Any]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


class Listed(Slots):
    """A model with a list of losses that it weighs itself, and sums of them since the last message."""

    def init_training_settings(self) -> None:
        self.losses: dict[str, Any] = {"l_g_l1": nn.L1Loss()}
        self.losses["l_g_l1"].loss_weight = 1.0
        self.setup_optimizers()

    def generator_losses(self) -> dict[str, Any]:
        return {label: loss(self.output, self.gt) * abs(loss.loss_weight) for label, loss in self.losses.items()}


def install(monkeypatch: pytest.MonkeyPatch, package: str) -> Any:
    """Make the package importable for one test; returns its registries, `models` and a function that builds options."""
    listed = package == "traiNNer"
    registries = {f"{kind}_REGISTRY": Registry(listed) for kind in ("LOSS", "METRIC", "DATASET", "MODEL")}
    sampler = type("EnlargedSampler", (EnlargedSampler,), {"set_epoch": EnlargedSampler.set_epoch})
    bases = {"basicsr": {"SRModel": Slots}, "traiNNer": {"SRModel": Listed, "RealESRGANModel": Listed}}
    models = {
        name: type(name, (base,), {"__module__": f"{package}.models"})
        for name, base in bases.get(package, {"image": Slots, "otf": Slots}).items()
    }
    if listed:
        models["RealESRGANPairedModel"] = type("RealESRGANPairedModel", (Listed,), {"__module__": f"{package}.models"})
    else:
        for model in models.values():
            registries["MODEL_REGISTRY"].register(model)
    options = {"ReduxOptions": type("ReduxOptions", (), {"__annotations__": {"qa": dict}})}
    parts = {
        "": {},
        ".utils": {},
        ".utils.registry": registries,
        ".utils.options": options,
        ".data": {},
        ".data.data_sampler": {"EnlargedSampler": sampler},
        ".models": {**models, "MODEL_REGISTRY": registries["MODEL_REGISTRY"]},
    }
    for path, contents in parts.items():
        module = ModuleType(package + path)
        module.__spec__ = ModuleSpec(package + path, None)
        module.__path__ = []
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, package + path, module)

    def build(**blocks: Any) -> Any:
        return SimpleNamespace(**{k: _struct(v) if k != "qa" else v for k, v in blocks.items()}) if listed else blocks

    return SimpleNamespace(**registries, models=sys.modules[f"{package}.models"], sampler=sampler, options=build)


def _struct(value: Any) -> Any:
    return SimpleNamespace(**value) if isinstance(value, dict) else value
