"""The demo's evaluation: Frechet distance and inception-style score in a classifier's features."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.demo.data import Images
from qa_hooks.features import FeatureExtractor
from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_distance, inception_score


class Evaluator:
    """Frechet distance and inception-style score in the 64 features of a small classifier trained on the spot.

    Without labels the network stays as it was initialised (seeded), and there is no score. The name says which.

    Attributes:
        name: of the extractor, part of each metric's name.
        accuracy: on the held-out part; None without labels.
        extractor: the features for monitors, which take images in [0, 1].
    """

    def __init__(self, data: Images, *, epochs: int = 12) -> None:
        channels = data.train.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features, self.head = _classifier(channels, data.train_labels)
            if self.head is not None and data.train_labels is not None:
                _train_classifier(self.features, self.head, data.train, data.train_labels, epochs)
        self.features.eval()
        self.accuracy = None
        if self.head is not None and data.test_labels is not None:
            self.accuracy = float((self.logits(data.test).argmax(1) == data.test_labels).float().mean())
        self.name = f"{data.name}-cnn64" if self.head is not None else "random-cnn64"
        name = re.sub(r"[^\w.-]", "_", self.name)
        self.extractor = FeatureExtractor(self.features, name=name, mean=(0.5,), std=(0.5,), channels=channels)
        self.real = self.moments(data.train)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """`(N, C, S, S)` in [-1, 1] -> `(N, 64)`."""
        return torch.cat([self.features(batch) for batch in images.split(512)])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """`(N, classes)`."""
        if self.head is None:
            raise ValueError("no labels, so no classifier")
        logits: Tensor = self.head(self.extract(images))
        return logits

    def moments(self, images: Tensor) -> Moments:
        """Mean and covariance of the features."""
        moments = Moments(64)
        moments.update(self.extract(images))
        return moments

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """`{"fd": .., "is": ..}` of generated images against the real training part."""
        own = self.moments(images)
        distance = frechet_distance(own.mean(), own.covariance(), self.real.mean(), self.real.covariance())
        values = {"fd": float(distance)}
        if self.head is not None:
            values["is"] = float(inception_score(self.logits(images), splits=1)[0])
        return values


def _classifier(channels: int, labels: Tensor | None) -> tuple[nn.Sequential, nn.Linear | None]:
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2 if labels is not None else 1),
        nn.Flatten(), *([nn.Linear(256, 64), nn.ReLU()] if labels is not None else []),
    )  # fmt: skip
    return features, nn.Linear(64, int(labels.max()) + 1) if labels is not None else None


def _train_classifier(features: nn.Module, head: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW([*features.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-4)
    batches = math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(images), device="cpu").split(64):
            loss = F.cross_entropy(head(features(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
