"""Files that were saved before must load and give the numbers that they gave then."""

from __future__ import annotations

import importlib.util
import json
import lzma
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
EXPECTED = json.loads((GOLDEN / "scores.json").read_text())


def _program():
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _program()
pytestmark = pytest.mark.filterwarnings("ignore:images of 64x64 have room for 3:UserWarning")


def test_every_golden_file_has_its_scores():
    files = {path.name.removesuffix(".safetensors.xz") for path in GOLDEN.glob("*.xz")}
    assert files == set(EXPECTED["scores"])
    assert len(files) >= 20


@pytest.mark.filterwarnings("ignore:.*was fitted on images of the size")
@pytest.mark.parametrize("name", EXPECTED["scores"])
def test_a_golden_file_gives_its_scores(name, tmp_path):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(lzma.decompress((GOLDEN / f"{path.name}.xz").read_bytes()))
    expected = torch.tensor(EXPECTED["scores"][name])
    assert len(expected.unique()) > 4  # numbers that differ, or an image could be taken for another
    torch.testing.assert_close(make.readings(path), expected, rtol=2e-5, atol=2e-5)


def test_fingerprints_are_those_of_then():
    """A cache on disk is found by its fingerprint, and a file fitted in features names theirs."""
    assert make.fingerprints() == EXPECTED["fingerprints"]
