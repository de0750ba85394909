"""A scorer file of a stranger: it starts no download, chooses no allocation, and is refused by name when broken."""

from __future__ import annotations

import json
import socket
import tracemalloc

import pytest
import torch

from qa_hooks._base.files import read_safetensors, write_safetensors
from qa_hooks.features import Features, create_extractor, extract_features
from qa_hooks.scorers import NIQE, BCScorer, GMMScorer, KNNScorer, MBCScorer, RankScorer, load_scorer

SMALL = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WIDTH = {"type": "random", "width": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    run, quick = (SMALL[:40], list(range(40))), {"steps": 1, "progress": False}
    scorers = {
        "gmm": GMMScorer(WIDTH, 2, pca=3).fit(SMALL, progress=False),
        "knn": KNNScorer(WIDTH).fit(SMALL, progress=False),
        "mbc": MBCScorer(2).fit_snapshots(run, SMALL, **quick),
        "bc": BCScorer().fit_snapshots(run, SMALL, **quick),
        "rank": RankScorer().fit(SMALL, crop=16, crops=2, warn_below=0, **quick),
        "niqe": NIQE(),
    }
    for name, scorer in scorers.items():
        scorer.save(root / f"{name}.safetensors")
    return root


def changed(files, tmp_path, name, change):
    """A file in which `change(header, tensors)` has been at work."""
    tensors, metadata = read_safetensors(files / f"{name}.safetensors", "")
    header = json.loads(metadata["scorer"])
    change(header, tensors)
    write_safetensors(tmp_path / "changed.safetensors", tensors, {**metadata, "scorer": json.dumps(header)})
    return tmp_path / "changed.safetensors"


def refused(path, match):
    """It raises a ValueError that names the file, without a connection and without much memory."""

    def connect(*_, **__):
        raise AssertionError("a connection was tried")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("create_connection", "getaddrinfo"):
            patched.setattr(socket, name, connect)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=f"(?s)changed.safetensors.*{match}"):
                load_scorer(path)
            assert tracemalloc.get_traced_memory()[1] < 2**27
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"type": "dinov2_vits14", "weights": "somebody/some-model"}, "not on this machine"),
        ({"type": "vgg11", "weights": "DEFAULT"}, "not on this machine"),
        ({"type": "vgg11", "weights": "http://example.com/x.pth"}, "has no weights"),
        ({"type": "vit_h_14", "weights": None}, "more than 200,000,000 weights"),
        ({"type": "dinov2_vitg14", "weights": None}, "more than 200,000,000 weights"),
        ({"type": "random", "width": 20000}, "more than 256"),
        ({"type": "random", "width": 2, "size": 10**6}, "more than 2048"),
        ({"type": "random", "width": 3}, "fingerprint"),
        ({"type": "nothing"}, "unknown extractor"),
        ([1, 2], ""),
        (None, "a network of your own"),
    ],
)
@pytest.mark.parametrize("name", ["gmm", "knn"])
def test_the_feature_network_is_not_the_files_choice(files, tmp_path, monkeypatch, name, spec, match):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "empty"))
    path = changed(files, tmp_path, name, lambda header, _: header["options"]["extractor"].update(spec=spec))
    refused(path, match)


def options(**values):
    return lambda header, _: header["options"].update(values)


def tensor(name, change):
    def put(_, tensors):
        tensors[name] = change(tensors[name])

    return put


def with_nan(value):
    value = value.clone()
    value.view(-1)[0] = torch.nan
    return value


CHANGES = {
    "a size of images": ("mbc", options(shape=[3, 10**6, 10**6]), "beyond the largest side"),
    "channels": ("mbc", options(shape=[10**9, 16, 16]), "channels"),
    "classifiers": ("mbc", options(classifiers=10**9), "classifiers"),
    "other classifiers": ("mbc", options(classifiers=500), "head"),
    "another network": ("bc", options(backbone="vgg19_bn"), "missing"),
    "no network": ("bc", options(backbone="/etc/passwd"), "backbone"),
    "NaN in a network": ("bc", tensor("body.0.weight", with_nan), "finite"),
    "NaN in a ranking network": ("rank", tensor("head.weight", with_nan), "finite"),
    "a level": ("rank", tensor("real_level", lambda value: value * torch.nan), "finite"),
    "accuracies": ("rank", tensor("accuracies", lambda value: value[:2]), ""),
    "NaN in a bank": ("knn", tensor("bank", with_nan), "finite"),
    "a bank of other features": ("knn", tensor("bank", lambda value: value[:, :5].contiguous()), "shape"),
    "fewer than the neighbours": ("knn", options(k=100), "shape"),
    "a component's mean": ("gmm", tensor("means", with_nan), "finite"),
    "factors": ("gmm", tensor("factors", lambda value: value[:, 0].contiguous()), "shape"),
    "components": ("gmm", options(components=10**9), "shape"),
    "whole numbers": ("gmm", tensor("center", lambda value: value.long()), "finite numbers"),
    "points": ("knn", tensor("calibration.points", with_nan), "points"),
    "points that fall": ("knn", tensor("calibration.points", lambda value: value.flip(0)), "ascend"),
    "one point": ("knn", tensor("calibration.points", lambda value: value[:1]), "points"),
    "a fitted size": ("knn", lambda header, _: header.update(size=[16, -1]), "side"),
    "no fitted size": ("knn", lambda header, _: header.update(size="x"), ""),
    "a covariance": ("niqe", tensor("covariance", with_nan), "finite"),
    "a window": ("niqe", lambda header, _: header["options"]["model"]["config"].update(window=10**9 + 1), "window"),
    "options": ("rank", lambda header, _: header.update(options=[1]), ""),
    "a seed": ("rank", options(seed=float("inf")), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_is_refused(files, tmp_path, name):
    scorer, change, match = CHANGES[name]
    refused(changed(files, tmp_path, scorer, change), match)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, " " * (1 << 24) + "{}", "{", ""])
def test_headers_that_cannot_be_read(tmp_path, text):
    metadata = {"format": "qa_hooks.scorer", "scorer": text}
    write_safetensors(tmp_path / "changed.safetensors", {"a": torch.zeros(1)}, metadata)
    with pytest.raises(ValueError, match=r"changed.safetensors"):
        load_scorer(tmp_path / "changed.safetensors")
    metadata = {"format": "qa_hooks.naturalness", "model": text}
    write_safetensors(tmp_path / "changed.safetensors", {"a": torch.zeros(1)}, metadata)
    with pytest.raises(ValueError, match=r"changed.safetensors"):
        load_scorer(tmp_path / "changed.safetensors")


def test_a_network_on_this_machine_is_made_again(tmp_path):
    """Untrained, from a file on disk, or of the user's: as before."""
    from torchvision import models

    torch.save(models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "mobile.pth")
    for options in ({"weights": None, "size": 32}, {"weights": str(tmp_path / "mobile.pth"), "size": 32}):
        scorer = KNNScorer({"type": "mobilenet_v3_small", **options}).fit(SMALL, progress=False)
        scorer.save(tmp_path / "scorer.safetensors")
        assert torch.equal(load_scorer(tmp_path / "scorer.safetensors")(SMALL[:2]), scorer(SMALL[:2]))


def test_features_that_cannot_be(tmp_path):
    features = extract_features(create_extractor(WIDTH), SMALL[:5], progress=False)
    assert features.size == (16, 16)
    features.save(tmp_path / "features.safetensors")
    assert Features.load(tmp_path / "features.safetensors").size == (16, 16)
    tensors, metadata = read_safetensors(tmp_path / "features.safetensors", "")
    wrong = [
        {"values": with_nan(tensors["values"])},
        {"values": tensors["values"][0]},
        {"indices": tensors["indices"][:2]},
    ]
    for change in wrong:
        write_safetensors(tmp_path / "wrong.safetensors", {**tensors, **change}, metadata)
        with pytest.raises(ValueError, match=r"wrong.safetensors does not hold features"):
            Features.load(tmp_path / "wrong.safetensors")
