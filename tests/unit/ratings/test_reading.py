"""Ratings and preferences: every published form on made-up rows, the traps of real files, and real files themselves."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from qa_hooks.ratings import Preference, Preferences, read_preferences, read_ratings

# One small file of each form: text, then what must come out (names, ratings, spreads, contents, kinds).
FORMS = {
    "agiqa-3k": (
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
        'DALLE2_normal_000.jpg,"a cat, sleeping",,,,3.5,0.5,2.0,0.1\n'
        "glide_lowstep_001.jpg,a dog,old,,,1.25,0.25,0.5,0.2\n",
        ["DALLE2_normal_000.jpg", "glide_lowstep_001.jpg"],
        [3.5, 1.25],
        [0.5, 0.25],
        ["a cat, sleeping", "a dog"],
        ["DALLE2", "glide"],
    ),
    "agiqa-1k": (
        "Image,Prompt,MOS\nx_1_2.jpg,p,4.5\ny_1_2.jpg,q,2\n",
        ["x_1_2.jpg", "y_1_2.jpg"],
        [4.5, 2],
        None,
        ["p", "q"],
        ["x", "y"],
    ),
    "agiqa-1k, raw scores": (
        "Image,Score\nx_1_2.jpg,4\ny_3_2.jpg,2\n",
        ["x_1_2.jpg", "y_3_2.jpg"],
        [4, 2],
        None,
        ["1_2", "3_2"],
        ["x", "y"],
    ),
    "aigiqa-20k": (
        'SDXL_0102.png,"a prompt, quoted",3.41\nSD_1_5_0001.png,"b",2\n',
        ["SDXL_0102.png", "SD_1_5_0001.png"],
        [3.41, 2],
        None,
        ["a prompt, quoted", "b"],
        ["SDXL", "SD_1_5"],
    ),
    "aigciqa-2023": (
        "model,image_name,mosz1,mosz2,mosz3,prompt\nGlide,0.png,50,40,30,p\nDALLE,0.png,60,45,35,p\n",
        ["Glide/0.png", "DALLE/0.png"],
        [50, 60],
        None,
        ["p", "p"],
        ["Glide", "DALLE"],
    ),
    "agin": ("filename,MOS_nat,MOS_tech,MOS_rat\na.png,1,2,3\nb.png,4,5,6\n", ["a.png", "b.png"], [1, 4], None, [], []),
    "koniq-10k": (
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"
        "1.jpg,0,0,.2,.7,.1,105,77.4,.53,training\n2.jpg,0,0,.5,.5,0,96,68,.6,validation\n",
        ["1.jpg", "2.jpg"],
        [77.4, 68],
        [0.53, 0.6],
        [],
        [],
    ),
    "tid2013": (
        "5.51429 I01_01_1.bmp\n4.9 i01_02_3.bmp\n",
        ["I01_01_1.bmp", "i01_02_3.bmp"],
        [5.51429, 4.9],
        None,
        ["I01", "I01"],
        ["01", "02"],
    ),
    "kadid-10k": (
        "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.25\nI02_03_05.png,I02.png,2,1\n",
        ["I01_01_01.png", "I02_03_05.png"],
        [4.57, 2],
        [0.5, 1],
        ["I01", "I02"],
        ["01", "03"],
    ),
    "pipal": (
        "A0001_00_00.bmp,1520.0648\nA0001_01_02.bmp,1400\n",
        ["A0001_00_00.bmp", "A0001_01_02.bmp"],
        [1520.0648, 1400],
        None,
        ["A0001", "A0001"],
        ["00", "01"],
    ),
    "sriqa-bench": (
        "ref.png 100.0\nesrgan.png 0\nswin.png 41.5\n",
        ["ref.png", "esrgan.png", "swin.png"],
        [100, 0, 41.5],
        None,
        ["file"] * 3,
        [],
    ),
    "a collection's table of kadid-10k": (
        "dis_img_path,dis_type,ref_img_path,score\nKADID-10k/I01_01_01.png,GBLUR,KADID-10k/I01.png,4.57\n",
        ["KADID-10k/I01_01_01.png"],
        [4.57],
        None,
        ["I01"],
        ["01"],
    ),
}


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_by_its_content(form, bom, tmp_path, caplog):
    text, names, rating, spread, content, kind = FORMS[form]
    path = tmp_path / "file.txt"
    path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    ratings = read_ratings(path)
    assert (ratings.format, ratings.names, ratings.content, ratings.kind) == (form, names, content, kind)
    assert ratings.rating.tolist() == rating
    assert (ratings.spread.tolist() if ratings.spread is not None else None) == spread
    assert ratings.higher_is_better
    assert form in caplog.text
    assert names[0] in caplog.text  # a wrong guess cannot be missed


def test_direction_and_scale_are_kept_and_stated(tmp_path):
    """LIVE's scores are differences: lower is better; the challenge of the same name has plain opinions."""
    header = "dis_img_path,dis_type,ref_img_path,score\n"
    for top, higher in (("LIVE", False), ("CSIQ", False), ("LIVE_Challenge", True), ("SPAQ", True)):
        path = tmp_path / "scores.txt"
        path.write_text(f"{header}{top}/a.bmp,x,{top}/r.bmp,10\n{top}/b.bmp,x,{top}/r.bmp,60\n")
        ratings = read_ratings(path)
        assert ratings.rating.tolist() == [10, 60]  # never flipped
        assert ratings.higher_is_better is higher
        assert (ratings.goodness[1] > ratings.goodness[0]).item() is higher
        better = read_ratings(path).as_pairs().labels.tolist()
        assert better == [-1.0 if higher else 1.0]
    assert not read_ratings(path, higher_is_better=False).higher_is_better  # a folder's name is only a guess
    path.write_text("5.5 I01_01_1.bmp\n4.9 I01_01_2.bmp\n")
    with pytest.raises(ValueError, match="where higher is better: leave higher_is_better out"):
        read_ratings(path, higher_is_better=False)


def test_the_direction_of_a_collection_is_read_from_every_folder_of_every_row(tmp_path):
    def read(*names, **options):
        path = tmp_path / "scores.txt"
        rows = "".join(f"{name},x,,{score}\n" for score, name in enumerate(names))
        path.write_text(f"dis_img_path,dis_type,ref_img_path,score\n{rows}")
        return read_ratings(path, **options)

    for top in (
        "./LIVE",
        "datasets/LIVE",
        "/data/live",
        "data\\CSIQ\\dst_imgs",
        "iqa/databaserelease2/jp2k",
        "live_md/x",
    ):
        ratings = read(f"{top}/a.bmp", f"{top}/b.bmp")
        assert not ratings.higher_is_better, top
        assert "DMOS" in ratings.scale
    assert read("./LIVE_Challenge/a.bmp", "./LIVE_Challenge/b.bmp").higher_is_better
    for names in (("SPAQ/a.png", "LIVE/a.png"), ("LIVE/a.png", "x/SPAQ/a.png"), ("LIVE/i01_01_1.bmp",)):
        with pytest.raises(ValueError, match="several directions in one table"):
            read(*names)
    for names in (("mine/a.png",), ("a.png",), ("LIVE/a.png", "mine/b.png"), ("alive/a.png",)):
        with pytest.raises(ValueError, match="folder of no known set"):
            read(*names)
        for higher in (True, False):
            assert read(*names, higher_is_better=higher).higher_is_better is higher
    with pytest.raises(ValueError, match="where higher is better: leave higher_is_better out"):
        read("TID2013/i01_01_1.bmp", higher_is_better=False)


def test_the_spreads_of_tid2013_stand_beside_its_names(tmp_path):
    (tmp_path / "mos_with_names.txt").write_text("5.5 I01_01_1.bmp\n4.9 I01_01_2.bmp\n")
    (tmp_path / "mos_std.txt").write_text("0.1\n0.2\n")
    assert read_ratings(tmp_path / "mos_with_names.txt").spread.tolist() == [0.1, 0.2]
    (tmp_path / "mos_std.txt").write_text("0.1\n")
    with pytest.raises(ValueError, match=r"1 rows for the 2"):
        read_ratings(tmp_path / "mos_with_names.txt")


def test_a_folder_of_files_one_a_reference(tmp_path):
    for content in ("one", "two"):
        (tmp_path / f"{content}.txt").write_text(f"{content}_a.png,100\n{content}_b.png,0\n")
    ratings = read_ratings(tmp_path)
    assert ratings.content == ["one", "one", "two", "two"]
    assert len(ratings.as_pairs()) == 2  # within a content only


def test_a_table_of_the_users_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("file;stars\n", encoding="utf-8")
    path.write_text("File,Stars,Who\na.png,4,ann\na.png,2,bob\nb.png,1,ann\n")
    columns = {"name": "file", "rating": "stars", "rater": "who"}
    ratings = read_ratings(path, columns=columns, higher_is_better=True)
    assert (ratings.names, ratings.rater) == (["a.png", "a.png", "b.png"], ["ann", "bob", "ann"])
    with pytest.raises(ValueError, match='which column is the "rater"'):
        read_ratings(path, columns={"name": "file", "rating": "stars"}, higher_is_better=True)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {}, "none of the known forms"),
        ("", {}, "is empty"),
        ("Image,Score\n", {}, "a header and no rows"),
        ("Image,Score\na.png,3\nb.png\n", {}, "another number of fields"),
        ("Image,Score\na.png,good\n", {}, "is no number"),
        ("Image,Score\na.png,nan\n", {}, "is no number"),
        ("Image,Score\na.png,3\n", {"format": "koniq-10k"}, "is no koniq-10k: its first line is Image, Score"),
        ("Image,Score\na.png,3\n", {"format": "mos"}, "format must be auto or one of"),
        ("Image,Score\na.png,3\n", {"rating": "align"}, "has the ratings rating"),
        ("Image,Score\na.png,3\n", {"columns": {"name": "Image", "rating": "Score"}}, "higher_is_better=True"),
        ("Image,Score\na.png,3\n", {"columns": {"name": "Image"}, "higher_is_better": True}, "which column is rating"),
        ("Image,Score\na.png,3\n", {"columns": {"name": "x", "rating": "Score"}, "higher_is_better": True}, "column"),
        ("Image,Score\na.png,3\na.png,4\n", {}, "have two ratings"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_ratings_is_refused(text, options, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ratings(path, **options)


def test_images_are_found_whatever_their_case_folder_and_suffix(tmp_path):
    for name in ("deep/set/I01_01_1.BMP", "b.jpeg", "one/c.png", "two/c.png", ".hidden/d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    table = tmp_path / "t.csv"
    table.write_text("Image,Score\nset/i01_01_1.bmp,1\nb.png,2\ntwo/c.png,3\n")
    found = read_ratings(table, images=tmp_path / "images").images
    assert [p.relative_to(tmp_path / "images").as_posix() for p in found] == [
        "deep/set/I01_01_1.BMP",
        "b.jpeg",
        "two/c.png",
    ]
    for names, message in (
        ("../b.png,1\n", "outside the folder"),
        ("/etc/b.png,1\n", "outside the folder"),
        ("c.png,1\n", "could be"),
        ("d.png,1\ne.png,2\nb.png,3\n", "2 of 3 images are not in"),
    ):
        table.write_text("Image,Score\n" + names)
        with pytest.raises(ValueError, match=message):
            read_ratings(table, images=tmp_path / "images")
    table.write_text("Image,Score\nb.png,1\nc2.png,2\n")
    assert read_ratings(table, images=tmp_path / "images").images[1] is None


PREFERENCES = {
    "imagereward": (
        [{"id": 1, "prompt": "p", "generations": ["a", "b", "c"], "ranking": [1, 5, 5]}],
        [("a", "b", 1), ("a", "c", 1), ("b", "c", 0)],
    ),
    "hpd v1": ([{"prompt": "p", "file_path": ["a", "b", "c"], "human_preference": 1}], [("b", "a", 1), ("b", "c", 1)]),
    "hpd v2, train": ([{"prompt": "p", "image_path": ["a", "b"], "human_preference": [0, 1]}], [("a", "b", -1)]),
    "hpd v2, test": (
        [
            {
                "prompt": "p",
                "image_path": ["a", "b"],
                "rank": [1, 2],
                "raw_annotations": [{"rank": [1, 2], "user_hash": "u"}, {"rank": [2, 1], "user_hash": "v"}],
            }
        ],
        [("a", "b", 1), ("a", "b", -1)],
    ),
    "diffiqa": (
        {"Picture_AI": {"Name": "v.png", "Label": "Positive"}, "picture_Original": {"Name": "o.png"}},
        [("v.png", "o.png", 1)],
    ),
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_preferences_become_pairs(form, tmp_path):
    content, expected = PREFERENCES[form]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    assert [(p.a, p.b, p.better) for p in read_preferences(path)] == expected


def test_triplets_and_plain_pairs(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("x_01.png,x_03.png,x.png,0,0.5,1\n")
    assert [(p.a, p.b, p.better) for p in read_preferences(path)] == [
        ("x_01.png", "x_03.png", -1), ("x_01.png", "x.png", 0), ("x_03.png", "x.png", 1),
    ]  # fmt: skip
    path.write_text("image_a,image_b,label,rater\na.png,b.png,2,r1\nb.png,a.png,1,r2\na.png,b.png,1,r3\n")
    assert read_preferences(path).labels.tolist() == [1, 1, 1]
    (voted,) = read_preferences(path, majority=True)  # two say a, one says b, whatever the order of the names
    assert (voted.a, voted.b, voted.better) == ("a.png", "b.png", 1)
    path.write_text("image_a,image_b,label,rater\na.png,b.png,1,r1\na.png,b.png,-1,r2\na.png,b.png,0,r3\n")
    assert len(read_preferences(path, majority=True)) == 0  # all differ
    with pytest.raises(ValueError, match="is no tid2013: it is read as pairs"):
        read_preferences(path, "tid2013")


def test_pick_a_pic_through_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(
        {"caption": ["p", "q", "r"], "image_0_uid": ["a", "c", "e"], "image_1_uid": ["b", "d", "f"],
         "label_0": [1.0, 0.5, 0.0], "label_1": [0.0, 0.5, 1.0], "has_label": [True, True, False]}
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [(p.a, p.better) for p in read_preferences(tmp_path / "x.parquet")] == [("a", 1), ("c", 0)]


def test_a_majority_counts_each_rater_once_for_each_content():
    def voted(*rows):
        return [(p.content, p.better) for p in Preferences([Preference(*row) for row in rows], "test").majority()]

    often = [("a", "b", 1.0, "x", "ann")] * 5
    assert voted(*often, ("a", "b", -1.0, "x", "bob"), ("b", "a", 1.0, "x", "eve")) == [("x", -1.0)]
    assert voted(*often, ("a", "b", -1.0, "x", "ann")) == [("x", 1.0)]  # her own majority
    assert voted(("a", "b", 1.0, "x", "ann"), ("a", "b", -1.0, "x", "ann"), ("a", "b", -1.0, "x", "bob")) == [
        ("x", -1.0)
    ]
    assert voted(("a", "b", 1.0, "x", "ann"), ("a", "b", -1.0, "x", "ann")) == []
    assert voted(("a", "b", 1.0, "x", "ann"), ("b", "a", 1.0, "y", "ann")) == [("x", 1.0), ("y", -1.0)]
    assert voted(("a", "b", 1.0), ("a", "b", 1.0), ("b", "a", 1.0)) == [("", 1.0)]  # nobody is named: three raters


@pytest.mark.parametrize("label", [None, float("nan"), "1", 0.7, float("inf")])
def test_a_label_of_pick_a_pic_that_is_none_is_refused(label, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = [label] if isinstance(label, str) else [1.0, label]
    rows = {"caption": "p", "image_0_uid": "a", "image_1_uid": "b"}
    columns = {name: [value] * len(labels) for name, value in rows.items()} | {"label_0": labels}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"entry {len(labels) - 1}: the label"):
        read_preferences(tmp_path / "x.parquet")


def test_a_file_that_only_looks_like_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_text("nonsense")
    with pytest.raises(ValueError, match=r"x\.parquet is no Parquet file"):
        read_preferences(tmp_path / "x.parquet")


@pytest.mark.parametrize("rank", ["null", "NaN", '"2"', "Infinity", "[1]"])
def test_a_rank_that_is_no_number_is_refused_with_its_entry(rank, tmp_path):
    good = '{"prompt": "p", "generations": ["a", "b"], "ranking": [1, 2]}'
    texts = [
        good.replace("[1, 2]", f"[1, {rank}]"),
        f'{{"prompt": "p", "image_path": ["a", "b"], "rank": [1, {rank}]}}',
        f'{{"prompt": "p", "image_path": ["a", "b"], "human_preference": [1, {rank}]}}',
        f'{{"prompt": "p", "image_path": ["a", "b"], "rank": [1, 2], "raw_annotations": [{{"rank": [1, {rank}]}}]}}',
        f'{{"prompt": "p", "image_path": ["a", "b"], "human_preference": {rank if rank != "[1]" else "1.5"}}}',
    ]
    for text in texts:
        first = good if "generations" in text else '{"prompt": "p", "image_path": ["a", "b"], "rank": [1, 2]}'
        (tmp_path / "x.json").write_text(f"[{first}, {text}]")
        with pytest.raises(ValueError, match="entry 1: ValueError"):
            read_preferences(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON"),
        ("[1]", "holds no entries"),
        ('[{"a": 1}]', "none of the known forms"),
        ('[{"prompt": "p", "generations": ["a"], "ranking": [1, 2]}]', "entry 0: ValueError: 1 images and 2 ranks"),
        ('{"picture_original": {"Name": "o"}, "Picture_AI": {"Name": "v", "Label": "Good"}}', "none of Positive"),
    ],
)
def test_what_is_no_file_of_preferences_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_preferences(tmp_path / "x.json")


REAL = {
    "agiqa3k_data.csv": (2982, "agiqa-3k", (0.0, 5.0), 6),
    "agiqa1k_raw.csv": (1080, "agiqa-1k, raw scores", (0.0, 5.0), 2),
    "agiqa1k_zscore.csv": (1078, "agiqa-1k", (0.0, 5.0), 2),  # one name stands twice with two scores
    "koniq10k_distributions_sets.csv": (10073, "koniq-10k", (0.0, 100.0), 0),
    "tid2013.txt": (3000, "a collection's table of tid2013", (0.24, 7.22), 24),
    "kadid10k.txt": (10125, "a collection's table of kadid-10k", (1.0, 5.0), 25),
    "pipal.txt": (23200, "a collection's table of pipal", (900.0, 1900.0), 7),
}


@pytest.mark.skipif("QA_HOOKS_RATINGS" not in os.environ, reason="QA_HOOKS_RATINGS names no folder of label files")
@pytest.mark.parametrize("name", REAL)
def test_real_files(name, caplog):
    caplog.set_level(logging.ERROR)
    count, form, (low, high), kinds = REAL[name]
    ratings = read_ratings(Path(os.environ["QA_HOOKS_RATINGS"]) / name)
    assert (len(ratings), ratings.format, len(set(ratings.kind))) == (count, form, kinds)
    assert low <= float(ratings.rating.min()) < float(ratings.rating.max()) <= high
    assert bool(torch.isfinite(ratings.rating).all())


@pytest.mark.skipif("QA_HOOKS_RATINGS" not in os.environ, reason="QA_HOOKS_RATINGS names no folder of label files")
def test_real_preferences():
    pairs = read_preferences(Path(os.environ["QA_HOOKS_RATINGS"]) / "imagereward_test.json")
    assert (len(pairs), int(pairs.labels.count_nonzero())) == (7230, 6399)


def test_references_of_one_name_in_two_folders_are_two_contents(tmp_path):
    """`setA/ref/1.png` and `setB/ref/1.png` show different things, whatever their bare names say."""
    lines = ["dis_img_path,dis_type,ref_img_path,score"]
    for folder in ("setA", "setB"):
        lines += [f"{folder}/{c}_{k}.png,blur,{folder}/ref/{c}.png,{k}" for c in (1, 2) for k in range(3)]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    ratings = read_ratings(tmp_path / "all.csv", higher_is_better=True)
    assert sorted(set(ratings.content)) == ["setA/ref/1", "setA/ref/2", "setB/ref/1", "setB/ref/2"]
    assert len(ratings.as_pairs()) == 4 * 3
    (tmp_path / "one.csv").write_text("\n".join(lines[:7]))
    assert sorted(set(read_ratings(tmp_path / "one.csv", higher_is_better=True).content)) == ["1", "2"]


MINE = {"columns": {"name": "file", "rating": "stars"}, "higher_is_better": True}


class TestTablesAsProgramsWriteThem:
    """A spreadsheet's separators, decimals, encodings; tables without a header; names in other spellings."""

    @pytest.mark.parametrize(
        ("text", "encoding"),
        [
            ("file,stars\r\na.png,4.5\r\nb.png,2\r\n", "utf-8-sig"),
            ("file,stars\ra.png,4.5\rb.png,2\r", "utf-8"),
            ("file;stars\na.png;4,5\nb.png;2\n", "utf-8"),
            ("file;stars;say, what\na.png;4.5;one, two\nb.png;2;three\n", "utf-8"),
            ('file,stars\na.png,"4,5"\nb.png,"2,0"\n', "utf-8"),
            ("file\tstars\na.png\t4,5\nb.png\t2\n", "utf-16"),
            ('file,stars,say\na.png,4.5,"one\u2028two,\nthree"\nb.png,2,four; five\n', "utf-8"),
        ],
    )
    def test_one_table_in_many_spellings(self, tmp_path, text, encoding):
        (tmp_path / "mine.csv").write_bytes(text.encode(encoding))
        found = read_ratings(tmp_path / "mine.csv", **MINE)
        assert found.names == ["a.png", "b.png"]
        assert found.rating.tolist() == [4.5, 2.0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file;stars\na.png;1,520\nb.png;1,480\n", "before decimals or thousands"),
            ("file;stars\na.png;4,5\nb.png;2.5\n", "has a comma, and '2.5' a point"),
            ("file,stars,stars\na.png,4,1\nb.png,2,5\n", "has 2 columns called 'stars'"),
            ("a.png,4\nb.png,2\n", "no column 'file'; it has no header: its columns are called 1 to 2"),
            ("file,stars\na.png,4\n./a.png,3\n", "is rated 4 and 3"),
        ],
    )
    def test_nothing_is_guessed(self, tmp_path, text, message):
        (tmp_path / "mine.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ratings(tmp_path / "mine.csv", **MINE)

    def test_without_a_header_columns_have_numbers(self, tmp_path):
        (tmp_path / "mine.csv").write_text("4,a.png\n2,b.png\n")
        for columns in ({"name": 2, "rating": 1}, {"name": "2", "rating": "1"}):
            found = read_ratings(tmp_path / "mine.csv", columns=columns, higher_is_better=False)
            assert (found.names, found.rating.tolist()) == (["a.png", "b.png"], [4.0, 2.0])
        with pytest.raises(ValueError, match="no column 0"):  # who counts from 0 is told, and not given the neighbour
            read_ratings(tmp_path / "mine.csv", columns={"name": 1, "rating": 0}, higher_is_better=False)

    def test_a_small_scale_without_a_header_is_no_benchmark(self, tmp_path):
        (tmp_path / "mine.csv").write_text("a.png,4\nb.png,2\n")
        with pytest.raises(ValueError, match="--columns name=1 rating=2"):
            read_ratings(tmp_path / "mine.csv")
        assert read_ratings(tmp_path / "mine.csv", "sriqa-bench").format == "sriqa-bench"
        (tmp_path / "mine.csv").write_text("a.png,100.0\nb.png,2\n")
        assert read_ratings(tmp_path / "mine.csv").format == "sriqa-bench"

    def test_whole_paths_into_the_folder_are_names_in_it(self, tmp_path):
        (tmp_path / "images" / "sub").mkdir(parents=True)
        for name in ("a.png", "sub/b.png"):
            (tmp_path / "images" / name).touch()
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "images")
        for root in (tmp_path / "images", link):
            (tmp_path / "mine.csv").write_text(f"file,stars\n{root}/a.png,4\n{root}/sub/b.png,2\n")
            found = read_ratings(tmp_path / "mine.csv", images=root, **MINE)
            assert found.images == [root / "a.png", root / "sub" / "b.png"]
        with pytest.raises(ValueError, match="is outside the folder"):
            read_ratings(tmp_path / "mine.csv", images=tmp_path / "images" / "sub", **MINE)

    def test_options_of_another_kind_are_refused(self, tmp_path):
        (tmp_path / "mine.csv").write_text("file,stars\na.png,4\n")
        columns = MINE["columns"]
        with pytest.raises(TypeError, match="must be True or False, got 'lower'"):  # which is true
            read_ratings(tmp_path / "mine.csv", columns=columns, higher_is_better="lower")
        with pytest.raises(TypeError, match="columns must be a mapping"):
            read_ratings(tmp_path / "mine.csv", columns="stars", higher_is_better=True)

    def test_a_name_without_its_parts(self, tmp_path):
        header = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
        (tmp_path / "data.csv").write_text(f'{header}\nx.png,"p, q",,,,1,2,3,4\n')
        assert read_ratings(tmp_path / "data.csv").level == [""]

    def test_labels_of_another_meaning(self, tmp_path, caplog):
        def read(*labels):
            rows = "".join(f"a{n}.png,b{n}.png,{label}\n" for n, label in enumerate(labels))
            (tmp_path / "pairs.csv").write_text(f"image_a,image_b,label\n{rows}")
            caplog.clear()
            return read_preferences(tmp_path / "pairs.csv").labels.tolist()

        with pytest.raises(ValueError, match="as shares are"):
            read(0, 0.5, 1)
        assert read(1, 0) == [1.0, 0.0]
        assert "the labels are 0, 1, so b is never better" in caplog.text
        (tmp_path / "pairs.csv").write_text("image_a,image_b,label\na.png,a.png,1\n")
        with pytest.raises(ValueError, match=r"a\.png is compared with itself"):
            read_preferences(tmp_path / "pairs.csv")
        assert read(1, -1, 0) == [1.0, -1.0, 0.0]
        assert "never better" not in caplog.text
