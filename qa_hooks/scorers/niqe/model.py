"""The model behind NIQE: a multivariate Gaussian of the features of natural images (or of natural gradient maps).

    f_1 .. f_n: feature rows of sharp blocks;  mu_p = mean f,  Sigma_p = sum (f - mu_p)(f - mu_p)^T / (n - 1)

Blocks count as sharp when their mean local deviation exceeds `sharpness` times the largest of the image.
Files are safetensors with a JSON header; the `.mat` and `.npz` files in circulation can be read, nothing is unpickled.

Source: Mittal, Soundararajan, Bovik 2013, section II-C.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_share, warn
from qa_hooks._base.files import read_safetensors, write_safetensors
from qa_hooks._base.headers import parse_header
from qa_hooks._base.progress import counted
from qa_hooks.functional.niqe import FeatureConfig, block_sharpness, niqe_features, valid_rows
from qa_hooks.functional.numerics import as_doubles, to_float64

FORMAT = "qa_hooks.naturalness"
RELEASE = "release"  # provenance["handling"] of published parameters: what flat blocks and rounding mean for them
WANTED = 5  # rows for each feature; a covariance of fewer is too uncertain
_EXPECTED = (
    "a NaturalnessModel saved by qa_hooks (.safetensors), a MATLAB .mat with mu_prisparam and cov_prisparam, "
    "or a .npz with mu_pris_param and cov_pris_param"
)


@dataclass(frozen=True, eq=False)
class NaturalnessModel:
    """Mean and covariance of natural features, with the configuration that they belong to.

    Attributes:
        mean, covariance: `(d,)` and `(d, d)` float64 on the CPU; d = `config.features`, 36 for two scales.
        config: how the features were computed; features of another configuration must not be compared with it.
        count: feature rows that it was fitted on; 0 when unknown.
        provenance: what is known about its making, as JSON can hold it; "name" becomes part of the scorer's name.

    Raises:
        ValueError: shapes that do not fit, non-finite numbers, a covariance that is not symmetric and positive
            semi-definite.

    Example:
        >>> images = [255 * torch.rand(1, 128, 128) for _ in range(16)]
        >>> model = NaturalnessModel.fit(images, FeatureConfig.niqe(block=32))
        >>> model.mean.shape, model.config.block
        (torch.Size([36]), 32)
    """

    mean: Tensor
    covariance: Tensor
    config: FeatureConfig
    count: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mean, covariance = (as_doubles(part).clone() for part in (self.mean, self.covariance))
        size = self.config.features
        if mean.shape != (size,) or covariance.shape != (size, size):
            raise ValueError(
                f"a model of {size} features needs a mean ({size},) and a covariance ({size}, {size}), "
                f"got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("the mean or the covariance of the model holds non-finite numbers")
        largest = covariance.abs().max()
        if (covariance - covariance.t()).abs().max() > 1e-6 * largest:
            raise ValueError("the covariance of the model is not symmetric")
        covariance = (covariance + covariance.t()) / 2
        if torch.linalg.eigvalsh(covariance)[0] < -1e-8 * largest:
            raise ValueError("the covariance of the model is not positive semi-definite")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def name(self) -> str:
        """What the model is called: `provenance["name"]`, or "custom"."""
        return str(self.provenance.get("name", "custom"))

    @property
    def condition(self) -> float:
        """Condition number of the covariance; above 1e10 the model was fitted on too few or too similar rows."""
        return float(torch.linalg.cond(self.covariance))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the numbers (to eight digits) and the configuration."""
        numbers = torch.cat([self.mean, self.covariance.flatten()]).tolist()
        text = json.dumps(self.config.to_dict(), sort_keys=True) + ",".join(f"{number:.7e}" for number in numbers)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def fit(
        cls,
        images: Iterable[Tensor],
        config: FeatureConfig,
        *,
        sharpness: float = 0.75,
        shrink: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> NaturalnessModel:
        """Fit a model on natural images.

        Args:
            images: grey images `(1, H, W)` or batches `(N, 1, H, W)`, sizes may differ; NIQE: on a 0..255 scale.
            config: of the features, e.g. `FeatureConfig.niqe()`.
            sharpness: keep the blocks above this share of the image's sharpest block; 0.75 in the paper, 0: all.
            shrink: share by which the covariance moves to its diagonal; 0 in the paper, 0.03 helps small sets.
            provenance: facts to keep with the model.
            progress: show a bar when stderr is a terminal.

        Raises:
            ValueError: no more blocks than features (36), or an image that is smaller than a block or not finite.
        """
        check_share("sharpness", sharpness, zero=True)
        kept: list[Tensor] = []
        for image in counted(images, "natural images", shown=progress):
            batch = image[None] if image.ndim == 3 else image
            if not bool(torch.isfinite(batch).all()):
                raise ValueError("images to fit a model on must be finite, and one of these holds NaN or infinity")
            with torch.no_grad():
                rows = niqe_features(batch, config)
            sharp = block_sharpness(batch, config)
            keep = valid_rows(rows) & (sharp > sharpness * sharp.amax(1, keepdim=True))
            kept.append(to_float64(rows[keep]).cpu())
        rows = torch.cat(kept) if kept else torch.zeros(0, config.features, dtype=torch.float64, device="cpu")
        least, wanted = config.features + 1, WANTED * config.features
        told = f"{len(rows)} sharp blocks; give more or larger images, or a lower sharpness="
        if len(rows) < least:
            raise ValueError(f"a naturalness model needs at least {least} blocks, and {wanted} to be relied on: {told}")
        if len(rows) < wanted:
            warn(f"a naturalness model wants {wanted} blocks, {WANTED} for each feature, to be relied on: {told}")
        center = rows.mean(0)
        deviations = rows - center
        return cls.from_moments(
            len(rows),
            deviations.sum(0),
            deviations.t() @ deviations,
            config,
            center=center,
            shrink=shrink,
            provenance=provenance,
        )

    @classmethod
    def from_moments(
        cls,
        count: int,
        total: Tensor,
        outer: Tensor,
        config: FeatureConfig,
        *,
        center: Tensor | None = None,
        shrink: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> NaturalnessModel:
        """The model of `count` rows from `sum f` `(d,)` and `sum f f^T` `(d, d)`, f measured from `center`."""
        if count < 2:
            raise ValueError(f"a naturalness model needs at least two feature rows that are not flat, got {count}")
        check_share("shrink", shrink, zero=True, one=True)
        total, outer = to_float64(total), to_float64(outer)
        offset = total / count
        covariance = (outer - count * torch.outer(offset, offset)) / (count - 1)
        covariance = covariance + shrink * (torch.diag(covariance.diagonal()) - covariance)
        mean = offset if center is None else offset + center.to(offset)
        return cls(mean, covariance, config, count=int(count), provenance=dict(provenance or {}))

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a `state_dict`."""
        return {
            "mean": self.mean,
            "covariance": self.covariance,
            "config": self.config.to_dict(),
            "count": self.count,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> NaturalnessModel:
        """The model that `to_dict` described."""
        config = FeatureConfig.from_dict(state["config"])
        return cls(state["mean"], state["covariance"], config, int(state["count"]), dict(state["provenance"]))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with a JSON header; it appears whole or not at all."""
        header = {"config": self.config.to_dict(), "count": self.count, "provenance": self.provenance}
        metadata = {"format": FORMAT, "version": "1", "model": json.dumps(header)}
        write_safetensors(path, {"mean": self.mean, "covariance": self.covariance}, metadata)

    @classmethod
    def load(cls, path: str | Path, config: FeatureConfig | None = None) -> NaturalnessModel:
        """Read a saved model, a MATLAB `.mat` or a BasicSR `.npz`.

        Args:
            path: the file.
            config: for `.mat` and `.npz`, which do not say; default `FeatureConfig.niqe()`.

        Raises:
            ValueError: no such file, a broken one, or one that holds something else; the message names it.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist; expected {_EXPECTED}")
        try:
            if path.suffix.lower() in (".mat", ".npz"):
                mean, covariance = _read_mat(path) if path.suffix.lower() == ".mat" else _read_npz(path)
                return cls(
                    torch.from_numpy(np.asarray(mean, dtype=np.float64).reshape(-1)),
                    torch.from_numpy(np.asarray(covariance, dtype=np.float64)),
                    config or FeatureConfig.niqe(),
                    provenance={"name": path.stem, "handling": RELEASE},
                )
            return cls.from_dict(_read_safetensors(path))
        except Exception as error:  # three foreign parsers, each with exceptions of its own for a broken file
            raise ValueError(f"{path} is not a whole naturalness model ({error}); expected {_EXPECTED}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors, metadata = read_safetensors(path, "is no model of ours", format=FORMAT)
    header: dict[str, Any] = parse_header(metadata["model"])
    return {**header, "mean": tensors["mean"], "covariance": tensors["covariance"]}


def _read_mat(path: Path) -> tuple[Any, Any]:
    from scipy.io import loadmat

    values = loadmat(path)
    return values["mu_prisparam"], values["cov_prisparam"]


def _read_npz(path: Path) -> tuple[Any, Any]:
    with np.load(path, allow_pickle=False) as values:
        return values["mu_pris_param"], values["cov_pris_param"]
