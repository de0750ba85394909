"""Scoring with a local Ray of two workers: the numbers of one process, and nothing lost when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qa_hooks import GMMScorer, KNNScorer, filter_scores, score_folder
from qa_hooks.cli import main
from qa_hooks.folders.scoring.shards import MANIFEST
from qa_hooks.images import load_image, save_image
from qa_hooks.integrations.ray import ScoreBatches, cluster, fit_dataset, score_dataset
from qa_hooks.integrations.ray.batches import own_gpu
from qa_hooks.integrations.ray.dataset import score_shard
from qa_hooks.integrations.ray.shards import find_shards
from qa_hooks.scorers import FunctionScorer, load_scorer
from toy_scorers import brightness

pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def ray():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three sizes, and a file that is none."""
    root = tmp_path_factory.mktemp("data") / "images"
    (root / "sub").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(90):
        shape = (3, 16 + number % 3, 16)
        pixels = torch.randint(0, 160 + number, shape, dtype=torch.uint8, generator=generator)
        save_image(pixels, root / f"{'sub/' if number % 2 else ''}{number:03d}.png")
    (root / "broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def gmm(tmp_path_factory, folder):
    """The file of a scorer with a calibration."""
    pictures = [load_image(path) for path in sorted(folder.rglob("*.png"))]
    images = torch.stack([image for image in pictures if image.shape[1] == 16])
    scorer = GMMScorer("random", components=1, pca=4).fit(images, calibration=None, progress=False)
    scorer.fit_calibration(scorer.goodness(images))
    path = tmp_path_factory.mktemp("scorer") / "gmm.safetensors"
    scorer.save(path)
    return path


def assert_same(table, expected) -> None:
    """The scores of all that one process could score, to 1e-6."""
    assert list(table.columns) == list(expected.columns)
    assert table.failures == expected.failures
    for name in expected.columns:
        found, wanted = (dict(zip(t.paths, t.columns[name].tolist(), strict=True)) for t in (table, expected))
        assert set(found) - set(wanted) == set(table.failures)
        assert [found[path] for path in wanted] == pytest.approx(list(wanted.values()), rel=1e-6)


def deadly(marker: Path, *, always: bool = False) -> FunctionScorer:
    """A scorer that kills the process that it is in, the first time or always."""

    def score(images):
        if always or not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return images.mean((1, 2, 3))

    return FunctionScorer(score, name="brightness", higher_is_better=True)


def test_a_cluster_gives_the_numbers_of_one_process(ray, folder, gmm, tmp_path):
    scorers = [gmm, brightness()]
    expected = score_folder(folder, scorers, tmp_path / "t.csv", progress=False)
    done = score_dataset(folder, scorers, tmp_path / "t", shard_size=10, progress=False)
    assert (done.images, done.problems, done.skipped) == (91, 1, 0)
    assert done.shards > 4
    assert list(done.failures) == ["broken.jpg"]
    table = done.read()
    assert table.paths == sorted(table.paths)
    assert_same(table, expected)
    kept = [filter_scores(path, keep=5, by="giqa_sgm").kept for path in (tmp_path / "t", tmp_path / "t.csv")]
    assert kept[0] == kept[1]


def test_a_worker_that_is_killed_loses_nothing(ray, folder, tmp_path):
    expected = score_folder(folder, brightness(), tmp_path / "t.csv", progress=False)
    done = score_dataset(folder, deadly(tmp_path / "marker"), tmp_path / "t", shard_size=20, progress=False)
    assert (tmp_path / "marker").exists()
    assert_same(done.read(), expected)
    assert not list((tmp_path / "t").glob("*.partial"))


def test_a_function_of_the_same_name_is_another_scorer(ray, folder, tmp_path):
    found = []
    for number, factor in enumerate((1.0, 2.0)):
        scorer = FunctionScorer(lambda x, by=factor: by * x.mean((1, 2, 3)), name="level", higher_is_better=True)
        table = score_dataset(folder, scorer, tmp_path / str(number), progress=False).read()
        found.append(table.columns["level"])
    assert torch.allclose(2 * found[0], found[1], equal_nan=True)


def test_a_shard_that_kills_every_worker_is_named_and_the_others_are_done(ray, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RETRIES", 0)
    fine = score_dataset(folder, brightness(), tmp_path / "t", shard_size=30, progress=False)
    (lost, *_) = (tmp_path / "t").glob("part-*")
    lost.unlink()
    with pytest.raises(RuntimeError, match=r"1 of 1 shards were not finished; .*the same command goes on"):
        score_dataset(folder, deadly(tmp_path, always=True), tmp_path / "t", shard_size=30, progress=False)
    again = score_dataset(folder, brightness(), tmp_path / "t", shard_size=30, progress=False)
    assert (again.shards, again.skipped, again.images) == (fine.shards, fine.shards - 1, 91)


@pytest.mark.slow
def test_pictures_that_kill_their_worker_cost_a_row_each(ray, folder, tmp_path):
    """Two in one shard, without another command."""
    doomed = [load_image(folder / name) for name in ("000.png", "sub/001.png")]

    def score(images):
        for image in images:
            if any(one.shape == image.shape and torch.equal(one, (image * 255).round().byte()) for one in doomed):
                os.kill(os.getpid(), signal.SIGKILL)
        return images.mean((1, 2, 3))

    scorer = FunctionScorer(score, name="brightness", higher_is_better=True)
    done = score_dataset(folder, scorer, tmp_path / "t", shard_size=1000, batch_size=4, progress=False)
    assert (done.images, done.problems) == (91, 3)
    table = done.read()
    expected = score_folder(folder, brightness(), tmp_path / "t.csv", progress=False)
    assert set(table.failures) == {"broken.jpg", "000.png", "sub/001.png"}
    assert "the process was killed" in table.failures["000.png"]
    found, wanted = (dict(zip(t.paths, t.columns["brightness"].tolist(), strict=True)) for t in (table, expected))
    rest = [path for path in wanted if path not in table.failures]
    assert [found[path] for path in rest] == pytest.approx([wanted[path] for path in rest], rel=1e-6)
    assert not list((tmp_path / "t").glob("*.begun*"))


@pytest.mark.parametrize("end", [SystemExit(15), ConnectionError("gone")])
def test_a_cluster_that_does_not_answer_is_an_error_of_its_address(ray, folder, tmp_path, monkeypatch, end):
    def init(**_):
        raise end

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match=r"no cluster of Ray at '127\.0\.0\.1:1' \((nobody answers|gone)\)"):
        score_dataset(folder, brightness(), tmp_path / "t", address="127.0.0.1:1", progress=False)


def test_only_what_changed_is_scored_again(ray, folder, tmp_path, capsys):
    command = ["score", str(folder), "--scorer", "psnr"]
    images = tmp_path / "images"
    images.mkdir()
    for path in folder.glob("*.png"):
        (images / path.name).write_bytes(path.read_bytes())
    first = score_dataset(images, brightness(), tmp_path / "t", shard_size=8, progress=False)
    save_image(torch.zeros(3, 16, 16, dtype=torch.uint8), images / "000.png")
    second = score_dataset(images, brightness(), tmp_path / "t", shard_size=8, progress=False)
    assert (second.shards, second.skipped) == (first.shards, first.shards - 1)
    assert len(list((tmp_path / "t").glob("part-*"))) == second.shards
    assert dict(zip(second.read().paths, second.read().columns["brightness"].tolist(), strict=True))["000.png"] == 0
    third = score_dataset(images, brightness(), tmp_path / "t", shard_size=8, progress=False, resume=False)
    assert third.skipped == 0
    assert main([*command, "--engine", "ray", "-o", str(tmp_path / "u")]) == 1
    assert "psnr needs a reference" in capsys.readouterr().err


def test_the_command(ray, folder, gmm, tmp_path, capsys):
    out = str(tmp_path / "t")
    command = ["score", str(folder), "--scorer", str(gmm), "--engine", "ray", "--shard-size", "40", "-o", out]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "91 images in" in said.out
    assert "1 image with problems:\n  broken.jpg: is not a readable image" in said.err
    assert main(command) == 0
    assert "from an earlier run" in capsys.readouterr().out
    assert main(["filter", out, "--keep", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["pick", str(folder), "--scores", out, "--keep", "3", "--out", str(tmp_path / "picked")]) == 0
    assert len(list((tmp_path / "picked" / "images").rglob("*.png"))) == 3


def test_ray_data_takes_the_class(ray, folder, gmm):
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    paths = sorted(folder.glob("*.png"))
    rows = [{"image": path.read_bytes(), "name": path.name} for path in paths] + [{"image": b"no", "name": "no"}]
    data = ray.data.from_items(rows).map_batches(
        ScoreBatches, fn_constructor_args=(str(gmm),), batch_size=16, concurrency=2
    )
    found = {row["name"]: row for row in data.take_all()}
    scorer = load_scorer(gmm)
    assert set(found["no"]) == {"name", "giqa_sgm", "giqa_sgm_calibrated", "problem"}
    assert np.isnan(found.pop("no")["giqa_sgm"])
    for path in paths:
        expected = scorer(load_image(path)[None]).item()
        assert found[path.name]["giqa_sgm"] == pytest.approx(expected, rel=1e-5)
        assert found[path.name]["problem"] == ""


def test_a_gpu_is_taken_where_ray_has_given_one(ray, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_gpu() is None  # this process gives out the work
    for given, expected in (({"GPU": 1.0}, "cuda"), ({"CPU": 1.0}, None)):
        context = SimpleNamespace(get_assigned_resources=lambda given=given: given)
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        assert own_gpu() == expected


@pytest.mark.parametrize("kind", ["gaussian", "neighbours"])
def test_a_fit_does_not_depend_on_the_cut(ray, folder, kind):
    def make():
        return GMMScorer("random", components=1, pca=4) if kind == "gaussian" else KNNScorer("random")

    found = [fit_dataset(folder, make(), shard_size=size, sample=30, progress=False) for size in (10, 1000)]
    assert found[0].calibration is not None
    assert found[0].fitted_size is None  # they have three
    image = load_image(folder / "000.png")[None]
    assert found[0](image).item() == pytest.approx(found[1](image).item(), rel=1e-4)
    if kind == "gaussian":
        pictures = [load_image(path)[None] for path in sorted(folder.rglob("*.png"))]
        rows = torch.cat([found[0].extractor(picture / 255) for picture in pictures])
        whole = make().fit_features(rows, calibration=None)
        exact = fit_dataset(folder, make(), shard_size=20, calibration=None, progress=False)
        assert exact(image).item() == pytest.approx(whole(image).item(), rel=1e-3)


@pytest.mark.parametrize(
    "kind",
    [
        ["gmm", "--components", "2", "--pca", "4", "--sample", "50"],
        ["knn", "--k", "2", "--sample", "50"],
    ],
)
def test_the_command_fits_on_a_cluster(ray, folder, tmp_path, kind, capsys):
    image, found = load_image(folder / "000.png")[None], []
    for size in ("10", "1000"):
        path = tmp_path / f"{size}.safetensors"
        command = ["fit", *kind[:1], str(folder), "-o", str(path), *kind[1:]]
        assert main([*command, "--engine", "ray", "--shard-size", size, "--seed", "3"]) == 0
        found.append(load_scorer(path))
    assert found[0](image).item() == pytest.approx(found[1](image).item(), rel=1e-4)
    assert found[0].calibrated()(image).item() == pytest.approx(found[1].calibrated()(image).item(), rel=1e-4)
    capsys.readouterr()
    assert main([*command, "--engine", "ray", "--limit", "5"]) == 1
    assert "--limit is not for --engine ray" in capsys.readouterr().err
    assert main([*command, "--shard-size", "10"]) == 1
    assert "is not for --engine local" in capsys.readouterr().err


def test_a_fit_on_files_that_change_says_so(ray, folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for path in folder.rglob("*.png"):
        (images / path.name).write_bytes(path.read_bytes())

    def find(*arguments, **options):
        shards = find_shards(*arguments, **options)
        os.utime(images / "000.png", (1, 1))
        return shards

    monkeypatch.setattr("qa_hooks.integrations.ray.fitting.find_shards", find)
    with pytest.warns(UserWarning, match=r"the files of 1 shard changed while they were read; the first, 000\.png"):
        fit_dataset(images, GMMScorer("random", components=1, pca=4), shard_size=10, progress=False)


def test_an_object_store_without_room_is_one_line(ray, folder, tmp_path, monkeypatch):
    def full(_value):
        raise ray.exceptions.ObjectStoreFullError("1 GB needed, 0 free.")

    line = r"^Ray has no room for the scorers: .*1 GB needed, 0 free\..*Free disk space .*the same command goes on"
    with monkeypatch.context() as patched:
        patched.setattr(ray, "put", full)
        with pytest.raises(RuntimeError, match=line):
            score_dataset(folder, brightness(), tmp_path / "t", progress=False)
        with pytest.raises(RuntimeError, match=line):
            fit_dataset(folder, GMMScorer("random", components=1), progress=False)
    assert score_dataset(folder, brightness(), tmp_path / "t", progress=False).images == 91


def test_work_for_gpus_that_are_not_there_says_what_it_waits_for(ray):
    with pytest.warns(UserWarning, match="no machine of the cluster has a GPU: the work waits until one"):
        task, room = cluster.remote(ray, score_shard, "cuda")
    assert (task._default_options["num_gpus"], room()) == (1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task, room = cluster.remote(ray, score_shard, None)
    assert (task._default_options["num_gpus"], room()) == (0, 6)


def test_what_cannot_be_fitted_is_named(ray, tmp_path):
    with pytest.raises(TypeError, match="must be a GMMScorer or a KNNScorer, got FunctionScorer"):
        fit_dataset(tmp_path, brightness())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="at least 10 held-out images, got 0"):
        fit_dataset(tmp_path, GMMScorer("random", components=1), progress=False)


def test_where_all_are_bad_nothing_is_left(ray, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 1 image could be scored; the first, a\.png"):
        score_dataset(tmp_path / "images", brightness(), tmp_path / "t", progress=False)
    assert not list((tmp_path / "t").iterdir())


def test_an_output_of_another_scorer_or_version_is_refused(ray, folder, tmp_path):
    score_dataset(folder, brightness(), tmp_path / "t", progress=False)
    with pytest.raises(ValueError, match=r"scorers was \['brightness .*, is now \['dark"):
        score_dataset(folder, brightness("dark"), tmp_path / "t", progress=False)
    manifest = tmp_path / "t" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "qa_hooks": "0.0.1"}))
    with pytest.raises(ValueError, match=r"qa_hooks was 0\.0\.1, is now"):
        score_dataset(folder, brightness(), tmp_path / "t", progress=False)
    manifest.unlink()
    with pytest.raises(ValueError, match="it is no table of scores"):
        score_dataset(folder, brightness(), tmp_path / "t", progress=False)
