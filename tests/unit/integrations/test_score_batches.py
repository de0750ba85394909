"""Batches of rows in, rows with scores out; and data sets cut into shards."""

from __future__ import annotations

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks import GMMScorer
from qa_hooks.features import create_extractor
from qa_hooks.folders.scoring.score_table import read_spec
from qa_hooks.folders.scoring.shards import MANIFEST, part_path
from qa_hooks.images import list_images, save_image
from qa_hooks.integrations.ray import ScoreBatches, score_dataset
from qa_hooks.integrations.ray.dataset import score_shard
from qa_hooks.integrations.ray.fitting import shard_sums
from qa_hooks.integrations.ray.shards import cut, find_shards
from qa_hooks.scorers import Scorer
from toy_scorers import brightness


def pixels(level: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), level, dtype=np.uint8)


def encoded(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(level)).save(file, "PNG")
    return file.getvalue()


def read(shards) -> list[tuple[str, object]]:
    return [(name, image) for shard in shards for name, image, *_ in shard.images()]


@pytest.mark.parametrize(
    "image",
    [
        encoded(51),
        memoryview(encoded(51)),
        {"bytes": encoded(51), "path": None},
        pixels(51),
        pixels(51)[:, :, 0],
        Image.fromarray(pixels(51)),
        torch.full((3, 8, 8), 51, dtype=torch.uint8),
        torch.full((3, 8, 8), 0.2),
    ],
)
def test_every_form_of_an_image(image):
    rows = ScoreBatches(brightness())({"image": [image], "label": [7]})
    assert rows["brightness"] == pytest.approx([0.2], rel=1e-6)
    assert (list(rows), rows["label"], rows["problem"].tolist()) == (["label", "brightness", "problem"], [7], [""])


def test_paths_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(51))
    images = [tmp_path / "a.png", str(tmp_path / "a.png"), {"bytes": None, "path": str(tmp_path / "a.png")}]
    images.append(str(tmp_path / "b.png"))
    rows = ScoreBatches(brightness())({"image": images})
    assert rows["brightness"][:3] == pytest.approx([0.2] * 3, rel=1e-6)
    assert "No such file" in rows["problem"][3]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (None, "there is no image"),
        ({"bytes": None, "path": None}, "there is no image"),
        (b"", "its content is none of"),
        (encoded(1)[:40], ""),
        (3, "must be"),
        ("https://example.com/a.png", "No such file"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), "there are 2 images in one row"),
        (torch.full((3, 8, 8), float("nan")), "not finite"),
        (np.zeros((0, 8, 3), dtype=np.uint8), ""),
    ],
)
def test_a_bad_image_is_a_problem_of_its_own(image, problem):
    rows = ScoreBatches(brightness())({"image": [pixels(51), image, pixels(102)]})
    assert rows["brightness"][[0, 2]] == pytest.approx([0.2, 0.4], rel=1e-6)
    assert np.isnan(rows["brightness"][1])
    assert problem in rows["problem"][1]
    assert rows["problem"][1]
    assert rows["problem"][[0, 2]].tolist() == ["", ""]


def test_whole_numbers_and_fractions_of_one_size_are_not_mixed():
    rows = ScoreBatches(brightness())({"image": [pixels(51), torch.full((3, 8, 8), 0.4)] * 3})
    assert rows["brightness"] == pytest.approx([0.2, 0.4] * 3, rel=1e-6)


def test_arrays_of_images_rows_and_sizes():
    score = ScoreBatches(brightness(), batch_size=2)
    stacked = np.stack([pixels(level) for level in (0, 51, 102)])
    assert score({"image": stacked})["brightness"] == pytest.approx([0, 0.2, 0.4], rel=1e-6)
    rows = [{"image": pixels(51, side), "n": side} for side in (4, 8, 4, 16)]
    assert score(rows)["brightness"] == pytest.approx([0.2] * 4, rel=1e-6)
    assert score(rows)["n"] == [4, 8, 4, 16]
    assert list(ScoreBatches(brightness(), keep_images=True)(rows)) == ["image", "n", "brightness", "problem"]
    assert len(score({"image": []})["brightness"]) == 0


def test_references_and_calibrations():
    noisy = [pixels(51), pixels(60), pixels(70, 16)]
    rows = ScoreBatches("psnr", "noisy", reference="clean")(
        {"noisy": noisy, "clean": [pixels(51), pixels(51), pixels(9)]}
    )
    expected = 10 * np.log10(255**2 / 81)
    assert rows["psnr"][1] == pytest.approx(expected, rel=1e-5)
    assert "its reference is (3, 8, 8), itself it is (3, 16, 16)" in rows["problem"][2]
    images = torch.rand(60, 3, 16, 16)
    scorer = GMMScorer("random", components=1, pca=4).fit(images, progress=False)
    scorer.fit_calibration(scorer.goodness(images))
    rows = ScoreBatches(scorer)({"image": images[:5]})
    assert rows["giqa_sgm"] == pytest.approx(scorer(images[:5]).numpy(), rel=1e-5)
    assert rows["giqa_sgm_calibrated"] == pytest.approx(scorer.calibrated()(images[:5]).numpy(), rel=1e-4)


def test_a_missing_reference_or_prompt_is_a_problem_of_its_row():
    clean = [pixels(51), None, pixels(51)]
    rows = ScoreBatches(["psnr", brightness()], "noisy", reference="clean")({"noisy": [pixels(60)] * 3, "clean": clean})
    assert np.isnan(rows["psnr"]).tolist() == [False, True, False]
    assert rows["brightness"] == pytest.approx([60 / 255] * 3, rel=1e-5)
    assert rows["problem"].tolist() == ["", "psnr: there is no reference", ""]

    class Length(Scorer):
        name, higher_is_better, inputs = "length", True, frozenset({"prompt"})

        def score(self, images, prompt):
            return torch.tensor([float(len(text)) for text in prompt])

    rows = ScoreBatches(Length(), prompt="caption")({"image": [pixels(1)] * 3, "caption": ["a", None, ""]})
    assert rows["length"][[0, 2]].tolist() == [1, 0]
    assert np.isnan(rows["length"][1])
    assert rows["problem"].tolist() == ["", "length: there is no prompt", ""]


def test_the_range_of_every_row_is_looked_at():
    score = ScoreBatches(brightness(), batch_size=1)
    good, bad = torch.rand(3, 8, 8), 255 * torch.rand(3, 8, 8)
    rows = score({"image": [good] * 5 + [bad, good]})
    assert np.isnan(rows["brightness"]).tolist() == [False] * 5 + [True, False]
    assert "far outside value_range=(0, 1)" in rows["problem"][5]
    rows = ScoreBatches("psnr", "image", reference="clean")({"image": [good] * 6, "clean": [good / 2] * 5 + [bad]})
    assert np.isnan(rows["psnr"]).tolist() == [False] * 5 + [True]
    assert "psnr: its reference: values lie in" in rows["problem"][5]


def test_prompts_come_from_a_column():
    class Length(Scorer):
        name, higher_is_better, inputs = "length", True, frozenset({"prompt"})

        def score(self, images, prompt):
            return torch.tensor([float(len(text)) for text in prompt])

    rows = ScoreBatches(Length(), prompt="caption")({"image": [pixels(1)] * 3, "caption": ["a", "bcd", 5]})
    assert rows["length"][:2].tolist() == [1, 3]
    assert "its prompt must be a text, got int" in rows["problem"][2]
    assert rows["caption"] == ["a", "bcd", 5]
    with pytest.raises(ValueError, match="prompt"):
        ScoreBatches(Length())
    with pytest.raises(ValueError, match="takes none"):
        ScoreBatches(brightness(), prompt="caption")


def test_what_is_wrong_with_a_batch_is_named():
    score = ScoreBatches(brightness())
    with pytest.raises(TypeError, match="a batch must be columns"):
        score(torch.zeros(2, 3, 8, 8))
    with pytest.raises(TypeError, match="whose items are dictionaries"):
        score([(torch.zeros(3, 8, 8), 3)])
    with pytest.raises(ValueError, match="no column 'image'; its columns are img"):
        score({"img": [pixels(1)]})
    with pytest.raises(ValueError, match="has columns brightness already"):
        score({"image": [pixels(1)], "brightness": [1]})
    with pytest.raises(ValueError, match="row 1 has the columns b, the first has image"):
        score([{"image": pixels(1)}, {"b": 1}])
    for row in (
        {"image": b"a file", "label": 3},
        {"image": [pixels(1)], "label": 3},
        {"image": Image.new("L", (8, 8))},
    ):
        with pytest.raises(TypeError, match=r"is one \w+ and not a list: .* batched=True"):  # datasets.map without it
            score(row)
    with pytest.raises(ValueError, match="column 'label' has 2 rows, 'image' has 1"):
        score({"image": [pixels(1)], "label": [1, 2]})
    with pytest.raises(ValueError, match="psnr needs a reference"):
        ScoreBatches("psnr")
    for nothing in (None, 5):
        with pytest.raises(ValueError, match="unknown scorer"):
            ScoreBatches(nothing)
    with pytest.raises(ValueError, match="takes none"):
        ScoreBatches(brightness(), reference="clean")
    with pytest.raises(ValueError, match="unknown scorer"):
        ScoreBatches("nonsense")


def test_a_copy_makes_the_same_scorers_and_refuses_others(tmp_path):
    images = torch.rand(60, 3, 16, 16)
    file = tmp_path / "gmm.safetensors"
    GMMScorer("random", components=1, pca=4).fit(images, progress=False).save(file)
    score = ScoreBatches(str(file))
    before = pickle.dumps(score)
    copy = pickle.loads(before)
    assert copy({"image": images[:3]})["giqa_sgm"] == pytest.approx(score({"image": images[:3]})["giqa_sgm"], rel=1e-6)
    assert pickle.dumps(score) == before  # the cache of `datasets` knows it again
    GMMScorer("random", components=1, pca=3).fit(images, progress=False).save(file)
    with pytest.raises(ValueError, match="giqa_sgm is another scorer in this process"):
        pickle.loads(before)({"image": images[:3]})


@pytest.mark.filterwarnings("ignore")
def test_datasets_map_and_a_loader_give_the_same(tmp_path):
    datasets = pytest.importorskip("datasets")
    levels = [0, 51, 102, 153, 204]
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(level), "path": None} for level in levels], "level": levels},
        features=datasets.Features({"image": datasets.Image(), "level": datasets.Value("int64")}),
    )
    GMMScorer("random", components=1, pca=2).fit(torch.rand(60, 3, 8, 8), calibration=None, progress=False).save(
        tmp_path / "gmm.safetensors"
    )
    score = ScoreBatches(str(tmp_path / "gmm.safetensors"))
    mapped = data.map(score, batched=True, batch_size=2)
    assert mapped.column_names == ["image", "level", "giqa_sgm", "problem"]
    assert mapped["level"][:] == levels
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=score)
    loaded = np.concatenate([batch["giqa_sgm"] for batch in loader])
    direct = score({"image": [pixels(level) for level in levels]})["giqa_sgm"]
    assert np.array(mapped["giqa_sgm"][:]) == pytest.approx(direct, rel=1e-6)
    assert loaded == pytest.approx(direct, rel=1e-6)
    again = data.map(score, batched=True, batch_size=2)
    assert again._fingerprint == mapped._fingerprint


def test_cuts_lie_where_names_say():
    names = [f"{number:05d}.png" for number in range(3000)]
    parts = list(cut(names, 100))
    assert [name for part in parts for name in part] == names
    assert 20 <= len(parts) <= 45
    assert max(map(len, parts)) <= 200
    without = {tuple(part) for part in cut(names[:1700] + names[1701:], 100)}
    assert len(without - {tuple(part) for part in parts}) <= 3
    assert list(cut(["a", "b"], 1)) == [["a"], ["b"]]


def test_images_parquet_files_and_tars_hold_the_same(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    levels = range(0, 200, 10)
    for kind in ("images", "parquet", "plain", "tars"):
        (tmp_path / kind / "deep").mkdir(parents=True)
    for level in levels:
        (tmp_path / "images" / "deep" / f"{level:03d}.png").write_bytes(encoded(level))
    rows = [{"bytes": encoded(level), "path": "x"} for level in levels]
    structs, plain = arrow.table({"n": list(levels), "img": rows}), [encoded(level) for level in levels]
    pyarrow.parquet.write_table(structs, tmp_path / "parquet" / "deep" / "a.parquet", row_group_size=6)
    pyarrow.parquet.write_table(arrow.table({"photo": plain}), tmp_path / "plain" / "a.parquet")
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as archive:
        for level in levels:
            for suffix, data in ((".png", encoded(level)), (".txt", b"a caption"), (".json", b"{}")):
                member = tarfile.TarInfo(f"{level:03d}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    expected = np.array(levels) / 255
    score = ScoreBatches(brightness())
    counts = {}
    for kind, options in {"images": {}, "parquet": {}, "plain": {"column": "photo"}, "tars": {}}.items():
        shards = find_shards(tmp_path / kind, shard_size=6, **options)
        names, images = zip(*read(shards), strict=True)
        assert score({"image": list(images)})["brightness"] == pytest.approx(expected, rel=1e-5)
        counts[kind] = len(shards), names[7]
        assert names == tuple(sorted(names))
    assert counts["parquet"] == (4, "deep/a.parquet/000007")
    assert counts["tars"] == (1, "a.tar/070.png")
    assert find_shards(tmp_path / "tars" / "a.tar")[0].files == ("a.tar",)
    with pytest.raises(ValueError, match=r"has no column image, .*; its columns are photo"):
        find_shards(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no column x"):
        find_shards(tmp_path / "plain", column="x")
    with pytest.raises(ValueError, match="is for Parquet files"):
        find_shards(tmp_path / "images", column="x")
    both = tmp_path / "both"
    both.mkdir()
    for kind in ("images", "plain", "tars"):
        (both / kind).symlink_to(tmp_path / kind)
    with pytest.raises(ValueError, match="1 Parquet files and 1 tars and 20 images"):
        find_shards(both)


def test_a_folder_that_only_ray_reads_says_so(tmp_path):
    (tmp_path / "a.TAR").touch()
    with pytest.raises(ValueError, match=r"holds no image files .*; Parquet files and tars are read by --engine ray"):
        list_images(tmp_path)


def test_broken_archives_are_rows_with_a_problem(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    ((name, image),) = read(find_shards(tmp_path / "a.parquet"))
    assert name == "a.parquet/000000"
    assert "cannot be read" in str(image)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 5000
            archive.addfile(member, io.BytesIO(bytes(5000)))
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:7000])
    found = read(find_shards(tmp_path / "b.tar"))
    assert [name for name, _ in found] == ["b.tar/0.png", "b.tar"]
    assert "cannot be read behind 1.png" in str(found[-1][1])


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".TAR.GZ", ".tar.bz2", ".tar.xz"])
def test_every_member_of_a_tar_is_a_row(tmp_path, suffix):
    """Names from other systems, names with dots before them, links: none of them is dropped without a word."""
    names = ["./a.png", "/b.png", "../c.png", "bad\udcff.png", "new\nline.png", "sub/d.PNG"]
    mode = {".tar": "", ".tgz": "gz", ".TAR.GZ": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}[suffix]
    with tarfile.open(tmp_path / f"odd{suffix}", f"w:{mode}") as archive:
        for name in [*names, "._a.png", ".hidden/e.png", "notes.txt"]:
            member = tarfile.TarInfo(name)
            member.size = len(encoded(10))
            archive.addfile(member, io.BytesIO(encoded(10)))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, "a.png"
            archive.addfile(member)
    found = read(find_shards(tmp_path))
    assert [name.partition("/")[2] for name, _ in found] == [
        *[name.replace("\udcff", "\\xff") for name in names], "link1.png", "link2.png"
    ]  # fmt: skip
    assert all("it is no file but a link to 'a.png'" in str(image) for _, image in found[-2:])
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / MANIFEST).write_text("{}")
    (shard,) = find_shards(tmp_path / f"odd{suffix}")
    counts = score_shard(ScoreBatches(brightness()), shard, str(part_path(tmp_path / "t", "0" * 16)), "call")
    assert (counts.images, counts.problems) == (len(names) + 2, 2)


def test_what_is_no_source_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(ValueError, match=r"is a file, and none of \.parquet, \.tar"):
        find_shards(tmp_path / "list.txt")
    (tmp_path / "list.txt").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        find_shards(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no image files"):
        find_shards(tmp_path)
    with pytest.raises(ValueError, match="is an address"):
        find_shards("s3://bucket/images")
    with pytest.raises(TypeError, match=r"takes dataset\.map_batches"):
        score_dataset([1, 2], brightness(), tmp_path / "t")
    save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "a.png")
    (tmp_path.parent / "no_folder").touch()
    for options, message in (({"device": "cuda:1"}, "device must be"), ({"shard_size": 0}, "shard_size must be")):
        with pytest.raises(ValueError, match=message):
            score_dataset(tmp_path, brightness(), tmp_path / "t", **options)
    with pytest.raises(ValueError, match="lies in"):
        score_dataset(tmp_path, brightness(), tmp_path / "t")
    with pytest.raises(ValueError, match="output must be a folder"):
        score_dataset(tmp_path, brightness(), tmp_path.parent / "no_folder")


def test_a_source_that_changes_while_it_is_read_gives_no_part(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "t").mkdir()
    save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "images" / "a.png")
    (shard,) = find_shards(tmp_path / "images")
    part = tmp_path / "t" / "part-0123456789abcdef.parquet"
    with pytest.raises(RuntimeError, match="must be a folder that all share"):
        score_shard(ScoreBatches(brightness()), shard, str(part), str(part))
    (tmp_path / "t" / MANIFEST).write_text("{}")
    assert score_shard(ScoreBatches(brightness()), shard, str(part), str(part)).images == 1
    part.unlink()
    os.utime(tmp_path / "images" / "a.png", (1, 1))
    with pytest.raises(RuntimeError, match="changed while they were read"):
        score_shard(ScoreBatches(brightness()), shard, str(part), str(part))
    assert not part.exists()
    assert shard_sums(create_extractor("random"), shard, (0.0, 1.0), 8, {}).changed
    (again,) = find_shards(tmp_path / "images")
    assert not shard_sums(create_extractor("random"), again, (0.0, 1.0), 8, {}).changed
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(RuntimeError, match="changed while they were read"):
        score_shard(ScoreBatches(brightness()), shard, str(part), str(part))
    with pytest.raises(ValueError, match="does not describe a table"):
        read_spec(tmp_path / "t")
