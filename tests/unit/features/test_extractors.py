"""Extractors: preprocessing against a plain computation, names and fingerprints that tell numbers apart, no traces."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from qa_hooks.features import FeatureExtractor, Features, create_extractor, extract_features
from qa_hooks.images import save_image


class Mean(nn.Module):
    """Means of rows: features that a test can compute by hand."""

    def forward(self, images):
        return images.mean((1, 3))


class Pair(nn.Module):
    """Not a tensor."""

    def forward(self, images):
        return images, images


def test_preprocessing_is_the_documented_one():
    images = torch.rand(2, 3, 20, 14)
    extractor = create_extractor(Mean(), name="rows", size=8, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    resized = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    expected = (resized - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([1.0, 2, 4]).view(1, 3, 1, 1)
    assert torch.allclose(extractor(images), expected.mean((1, 3)), atol=1e-6)
    assert extractor.dim == 8


def test_grey_colour_and_uint8_are_one_image():
    grey = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    for channels in (1, 3):
        extractor = create_extractor(Mean(), name="rows", channels=channels)
        expected = extractor(grey.float() / 255)
        assert torch.allclose(extractor(grey), expected, atol=1e-6)
        assert torch.allclose(extractor(grey.expand(2, 3, 16, 16)), expected, atol=1e-6)


def test_maps_are_averaged_and_other_outputs_refused():
    assert create_extractor(nn.Conv2d(3, 5, 3), name="conv").dim == 5
    with pytest.raises(ValueError, match=r"one vector per image: \(2, dim\), got \(2, 3, 16\)"):
        create_extractor(nn.Flatten(2), name="flat")(torch.rand(2, 3, 4, 4))
    with pytest.raises(TypeError, match="a tensor"):
        create_extractor(Pair(), name="pair")(torch.rand(2, 3, 4, 4))


def test_it_is_frozen_and_the_gradient_reaches_the_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    extractor = create_extractor(net, name="net")
    parent = nn.ModuleList([extractor]).train()
    assert not extractor.network[1].training
    assert not list(parent.parameters())
    assert not parent.state_dict()
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    before = extractor.network[1].running_mean.clone()
    extractor(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert torch.equal(extractor.network[1].running_mean, before)


def test_a_network_in_training_is_copied_and_a_frozen_one_is_used():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    extractor = create_extractor(net, name="net")
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    images = torch.rand(2, 3, 8, 8)
    before = extractor(images)
    with torch.no_grad():
        net[0].weight.add_(1)
    assert torch.equal(extractor(images), before)
    frozen = net.requires_grad_(False)
    shared = create_extractor(frozen, name="net")
    assert shared.network is frozen
    first = shared.fingerprint
    nn.ModuleList([frozen]).train()  # a parent of the user's
    statistics = frozen[1].running_mean.clone()
    shared(images)
    assert torch.equal(frozen[1].running_mean, statistics)
    with torch.no_grad():
        frozen[0].weight.add_(1)
    assert shared.fingerprint != first


def test_an_extractor_made_in_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        extractor = create_extractor("random", width=4)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    extractor(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_network_of_one_channel_is_told_how():
    with pytest.raises(ValueError, match=r"channels=1"):
        _ = create_extractor(nn.Conv2d(1, 4, 3), name="grey").dim


def test_without_a_network_the_way_out_is_told(monkeypatch):
    from urllib.error import URLError

    def fail(*_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(RuntimeError, match=r"could not be downloaded.*weights=PATH.*random"):
        create_extractor("resnet18")


@pytest.mark.parametrize(("name", "dim"), [("dinov2_vits14", 384)])
def test_untrained_dinov2_has_the_size_of_its_name(name, dim):
    pytest.importorskip("transformers")
    assert create_extractor(name, weights=None, size=28).dim == dim


def test_fingerprints_tell_what_differs():
    def make(seed=0, **options):
        torch.manual_seed(seed)
        return create_extractor(nn.Conv2d(3, 4, 3), name="net", **options).fingerprint

    same = make()
    assert same == make()
    assert len(same) == 16
    others = [make(1), make(size=8), make(mean=(0.5,)), make(std=(0.5,)), make(amp=True)]
    others.append(make(size=8, interpolation="bicubic"))
    torch.manual_seed(0)
    others.append(create_extractor(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), name="net").fingerprint)
    torch.manual_seed(0)
    others.append(create_extractor(nn.Conv2d(3, 4, 3, stride=2), name="net").fingerprint)
    assert len({same, *others}) == 1 + len(others)


def test_random_features_are_seeded_and_leave_the_random_state():
    state = torch.get_rng_state()
    first, second, other = (create_extractor("random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(first(images), second(images))
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert first.name == "random32-3"
    again = create_extractor(**{"spec": first.spec})
    assert again.fingerprint == first.fingerprint
    values = create_extractor("random")(torch.cat([torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16), images]))
    assert torch.isfinite(values).all()


def test_random_features_do_not_change_between_versions():
    """Stored scorers depend on them: a value computed in NumPy float64 from the seeded weights."""
    extractor = create_extractor("random")
    image = torch.linspace(0, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    layer = extractor.network.layers[0]
    padded = np.pad((image.numpy()[0] - 0.5) / 0.25, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    maps = np.einsum("chwij,ocij->ohw", windows, layer.weight.numpy()) + layer.bias.numpy()[:, None, None]
    expected = np.log(np.maximum(maps, 0).mean((1, 2)) + 0.01)
    assert np.allclose(extractor(image)[0, :32].numpy(), expected, atol=1e-5)
    drawn = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * (2 / 27) ** 0.5
    assert torch.equal(layer.weight, drawn)


def test_amp_is_near_and_has_another_fingerprint():
    images = torch.rand(2, 3, 32, 32)
    plain, amp = create_extractor("random"), create_extractor("random", amp=True)
    assert 0 < (plain(images) - amp(images)).abs().max() < 0.2
    assert amp(images).dtype == torch.float32
    assert plain.fingerprint != amp.fingerprint


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("vgg11", 4096), ("mobilenet_v3_small", 1024)])
def test_torchvision_networks_lose_their_last_layer(name, dim):
    from torchvision import models

    state = torch.get_rng_state()
    extractor = create_extractor(name, weights=None, size=32)
    assert torch.equal(state, torch.get_rng_state())
    assert extractor.dim == dim
    assert extractor.name == f"{name}-untrained"
    if name == "resnet18":
        torch.manual_seed(0)
        whole = models.resnet18(weights=None).eval()
        images = torch.rand(1, 3, 32, 32)
        assert torch.allclose(whole.fc(extractor(images)), whole(extractor.prepare(images)), atol=1e-5)


def test_weights_from_disk(tmp_path):
    from safetensors.torch import save_file
    from torchvision import models

    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "mine.pth")
    save_file(state, tmp_path / "mine.safetensors")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    torch.save({**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "ten.pth")
    prints = {
        create_extractor("resnet18", weights=str(tmp_path / name)).fingerprint
        for name in ("mine.pth", "mine.safetensors", "wrapped.pth", "ten.pth")
    }
    assert len(prints) == 1
    assert create_extractor("resnet18", weights=str(tmp_path / "mine.pth")).name == "resnet18-mine"
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit ResNet"):
        create_extractor("resnet18", weights=str(tmp_path / "other.pth"))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "mine.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pth is not a readable state dict"):
        create_extractor("resnet18", weights=str(tmp_path / "cut.pth"))
    with pytest.raises(ValueError, match="no weights 'NONE_SUCH'"):
        create_extractor("resnet18", weights="NONE_SUCH")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_is_unpickled(tmp_path):
    import pickle

    class Boom:
        def __reduce__(self):
            return (print, ("boom",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ValueError, match="not a readable state dict"):
        create_extractor("resnet18", weights=str(tmp_path / "evil.pth"))


def test_inception_is_torch_fidelity_s(tmp_path, capsys):
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    plain = source.FeatureExtractorInceptionV3.__new__(source.FeatureExtractorInceptionV3)
    from unittest import mock

    torch.manual_seed(0)
    with (
        mock.patch.object(source, "load_state_dict_from_url", return_value={}),
        mock.patch.object(source.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        plain.__init__("inception", ["2048"])
    torch.save(plain.state_dict(), tmp_path / "inception.pth")
    extractor = create_extractor("inception", weights=str(tmp_path / "inception.pth"))
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    assert torch.allclose(extractor(images), plain(images)[0], rtol=1e-4, atol=1e-5)
    assert extractor.dim == 2048
    floats = (images.float() / 255).requires_grad_()
    extractor(floats).sum().backward()
    assert floats.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="own resize"):
        create_extractor("inception", size=64)


def test_dinov2_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "tiny")
    extractor = create_extractor("dinov2_vits14", weights=str(tmp_path / "tiny"), size=28)
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(pixel_values=extractor.prepare(images)).pooler_output
    assert torch.allclose(extractor(images), expected, atol=1e-5)
    assert extractor.name == "dinov2_vits14-tiny"


def test_extraction_is_the_extractor_image_by_image(tmp_path):
    extractor = create_extractor("random", width=4)
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    expected = extractor(images)
    for number, image in enumerate(images):
        save_image(image, tmp_path / f"{number}.png")
    floats = images.float() / 255 * 2 - 1
    loader = DataLoader(list(floats), batch_size=4)
    for source, value_range in ((images, (0, 1)), (tmp_path, (0, 1)), (floats, (-1, 1)), (loader, (-1, 1))):
        features = extract_features(extractor, source, batch_size=2, value_range=value_range)
        assert torch.allclose(features.values, expected, atol=1e-4)
        assert features.fingerprint == extractor.fingerprint
        assert features.indices.tolist() == list(range(9))


def test_broken_files_are_left_out_and_named(tmp_path):
    for number in range(4):
        save_image(torch.full((3, 16, 16), 50 * number, dtype=torch.uint8), tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_text("no image")
    failures: dict[int, str] = {}
    features = extract_features(create_extractor("random", width=4), tmp_path, failures=failures)
    assert features.indices.tolist() == [0, 2, 3]
    assert list(failures) == [1]
    with pytest.raises(ValueError, match=r"1\.png"):
        extract_features(create_extractor("random", width=4), tmp_path)


def test_extraction_leaves_no_trace():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    loader = DataLoader(list(torch.rand(6, 3, 8, 8)), batch_size=2, shuffle=True)
    extractor = create_extractor(net, name="net")
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    extract_features(extractor, loader)
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.equal(states[2], torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.rand(2, 3, 8, 8) * 3, "declare the range"),
        (torch.full((2, 3, 8, 8), float("nan")), "not finite"),
        (iter([]), "no readable image"),
    ],
)
def test_bad_images(source, message):
    with pytest.raises(ValueError, match=message):
        extract_features(create_extractor("random", width=4), source)


def test_generated_images_may_overshoot():
    images = torch.rand(2, 3, 8, 8) * 1.1
    features = extract_features(create_extractor("random", width=4), images, generated=True)
    clamped = extract_features(create_extractor("random", width=4), images.clamp(0, 1))
    assert torch.equal(features.values, clamped.values)


def test_features_that_are_not_finite_are_refused():
    extractor = create_extractor(FeatureExtractor(Mean(), name="rows").network, name="broken", std=(1e-38,))
    with pytest.raises(ValueError, match="not finite"):
        extract_features(extractor, torch.rand(2, 3, 8, 8) * 0.5 + 0.5)


def test_files_of_features(tmp_path):
    features = extract_features(create_extractor("random", width=4), torch.rand(5, 3, 8, 8))
    features.save(tmp_path / "f.safetensors")
    loaded = Features.load(tmp_path / "f.safetensors")
    assert torch.equal(loaded.values, features.values)
    assert loaded.fingerprint == features.fingerprint
    assert len(loaded[1:3]) == 2
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cut\.safetensors does not hold features"):
        Features.load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        Features.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_extractor("no_such_net"), ValueError, "unknown extractor 'no_such_net'"),
        (lambda: create_extractor(Mean()), ValueError, "needs a name"),
        (lambda: create_extractor(Mean(), name="a/b"), ValueError, "letters, digits"),
        (lambda: create_extractor("random", depth=3), TypeError, "depth"),
        (lambda: create_extractor({"seed": 3}), ValueError, "needs the key 'type'"),
        (lambda: create_extractor(create_extractor("random"), seed=1), TypeError, "takes no options"),
        (lambda: create_extractor("random")(torch.rand(2, 4, 8, 8)), ValueError, "1 or 3 channels, got 4"),
        (lambda: create_extractor("random")(torch.rand(3, 8, 8)), ValueError, "shape"),
        (lambda: create_extractor(Mean(), name="m", std=(0,)), ValueError, "std positive"),
    ],
)
def test_bad_options(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: x.mean((2, 3)), False),
        (lambda x: x.bfloat16().mean((2, 3)), False),
        (lambda x: x.mean((2, 3)) + torch.randn(len(x), 3), True),
        (lambda x: torch.cat([x.mean((2, 3)), x.std(0, correction=0).mean().expand(len(x), 1)], 1), True),
    ],
    ids=["steady", "half precision", "random", "of the batch"],
)
def test_features_that_depend_on_chance_or_on_the_batch_are_told(function, told):
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    extractor = create_extractor(Own(function), name="mine")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = extract_features(extractor, images, batch_size=4, progress=False)
    assert len(features) == 12
    assert [str(warning.message)[:54] for warning in caught] == (
        ["mine gives an image other features alone than in a bat"] if told else []
    )
