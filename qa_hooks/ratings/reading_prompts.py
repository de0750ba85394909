"""Generated images with what they were made from: DiffusionDB's parts and its metadata. Nobody has rated them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.headers import read_json
from qa_hooks._base.text import plural, printable
from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.parquet import parquet_rows

LOG = logging.getLogger("qa_hooks")
PARQUET = {"prompt": "prompt", "cfg": "guidance", "step": "steps", "seed": "seed"}
JSON = {"p": "prompt", "c": "guidance", "st": "steps", "se": "seed"}


@dataclass(frozen=True, eq=False)
class Prompts:
    """One row for each image: its name, its prompt, and the settings that it was made with.

    Attributes:
        names: as the file has them.
        prompts: texts.
        guidance: `(n,)` float64, scale of the classifier-free guidance.
        steps: `(n,)` int64, denoising steps.
        seeds: `(n,)` int64.
        images: the files on disk; None where none was looked for or found.
    """

    names: list[str]
    prompts: list[str]
    guidance: Tensor
    steps: Tensor
    seeds: Tensor
    images: list[Path | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        first = printable(f"{self.names[0]}: {self.prompts[0]}", one_line=True)
        lines = [f"{plural(len(self), 'image')} with prompts, without ratings", f"  {first}"]
        if self.images:
            missing = sum(place is None for place in self.images)
            lines.append(f"  without an image: {missing}" if missing else "  all images are there")
        return "\n".join(lines)


def read_prompts(path: str | Path, *, images: str | Path | None = None) -> Prompts:
    """Read the prompts of a part of DiffusionDB (`part-000001.json`) or of its `metadata.parquet`.

    Args:
        path: the file.
        images: the folder that holds the images.

    Raises:
        ValueError: no such file, another form, an entry without a prompt, images that are mostly missing.
        ImportError: a Parquet file, and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "part-000001.json"
        >>> _ = path.write_text('{"a.png": {"p": "a cat", "se": 7, "c": 7.5, "st": 50, "sa": "k_lms"}}')
        >>> read_prompts(path).prompts
        ['a cat']
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no images")
    found = Prompts(
        [str(row["name"]) for row in rows],
        [str(row["prompt"]) for row in rows],
        torch.tensor([float(row["guidance"]) for row in rows], dtype=torch.float64, device="cpu"),
        torch.tensor([int(row["steps"]) for row in rows], dtype=torch.int64, device="cpu"),
        torch.tensor([int(row["seed"]) for row in rows], dtype=torch.int64, device="cpu"),
    )
    if images is not None:
        found = replace(found, images=find_images(found.names, images))
    LOG.info("%s", found)
    return found


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} is no part of DiffusionDB, {{"NAME.png": {{"p": PROMPT, "c": 7.0, ...}}}}')
    rows = []
    for name, entry in content.items():
        if not isinstance(entry, dict) or (missing := [key for key in JSON if key not in entry]):
            lacks = "its entry is no mapping" if not isinstance(entry, dict) else f"it has no {', '.join(missing)}"
            raise ValueError(f"{path} is no part of DiffusionDB: {name!r}: {lacks}")
        rows.append({"name": name, **{to: entry[key] for key, to in JSON.items()}})
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    rows = parquet_rows(path, "metadata of DiffusionDB", ["image_name", *PARQUET])
    return [{"name": row["image_name"], **{to: row[key] for key, to in PARQUET.items()}} for row in rows]
