"""Ratings of how well images fit their prompts: `qa-hooks select --target align`, `fit mos` and `fit pairs`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.cli import main
from qa_hooks.images import load_image
from qa_hooks.ratings import fit_mos, fit_pairs, read_preferences, read_ratings
from qa_hooks.scorers import create_scorer, load_scorer
from tiny_clip import SIDE, WORDS, save_clip

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
EACH, PROMPTS = 4, [f"{a} {b} of {c}" for a in ("red", "blue", "a") for b in ("cat", "dog") for c in WORDS[4::3]]


class Set:
    """AGIQA-3K's form: 12 prompts with 4 images each, whose rating of alignment is a tiny CLIP's, with some noise."""

    def __init__(self, folder: Path) -> None:
        self.model, self.images, self.table = save_clip(folder / "model"), folder / "images", folder / "data.csv"
        self.images.mkdir()
        random, files, prompts = np.random.default_rng(0), [], []
        for number, prompt in enumerate(PROMPTS):
            for each in range(EACH):
                files.append(self.images / f"{('DALLE2', 'sd1.5')[each % 2]}_normal_{number:03d}_{each}.png")
                coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(np.kron(coarse, np.ones((SIDE // 4, SIDE // 4, 1), np.uint8))).save(files[-1])
                prompts.append(prompt)
        scorer = create_scorer(f"transformers:{self.model}")
        with torch.no_grad():
            logits = scorer(torch.stack([load_image(file) for file in files]), prompt=prompts)
        rank = logits.argsort().argsort().double() / len(files)
        self.align = 5 * (0.9 * rank + 0.1 * torch.from_numpy(random.random(len(files))))
        rows = ["name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"]
        rows += [
            f'{file.name},"{prompt}",,,,{5 * random.random():.4f},0.5,{align:.4f},0.5'
            for file, prompt, align in zip(files, prompts, self.align.tolist(), strict=True)
        ]
        self.table.write_text("\n".join(rows) + "\n")
        self.pairs, self.files, self.prompts = folder / "pairs.csv", files, prompts
        lines = ["image_a,image_b,label,content"]
        for a in range(len(files)):
            for b in range(a):
                if prompts[a] == prompts[b]:
                    better = 1 if self.align[a] > self.align[b] else -1
                    lines.append(f"{files[a].name},{files[b].name},{better},{prompts[a]}")
        self.pairs.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Set:
    return Set(tmp_path_factory.mktemp("agiqa"))


def test_select_judges_by_the_agreement_with_the_prompt(made, tmp_path, capsys):
    scorers = ["--scorers", f"transformers:{made.model}", "--by", "--statistics", "srcc"]
    command = ["select", str(made.table), str(made.images), *scorers]
    assert main([*command, "--target", "align", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    (row,) = [row for row in found["agreement"]["rows"] if row["column"] == ""]
    assert row["found"]["value"] > 0.9
    assert row["found"]["clusters"] == len(PROMPTS)
    assert "monitor: " in said
    assert "need prompts, which the doctor does not judge" in said
    assert main([*command, "--target", "quality", "-o", str(tmp_path / "other")]) == 0
    other = json.loads((tmp_path / "other" / "report.json").read_text())
    assert abs(other["agreement"]["rows"][0]["found"]["value"]) < 0.5  # the quality was made up


def test_a_scorer_of_ones_own_alignment(made, tmp_path, capsys):
    output = tmp_path / "mine.safetensors"
    command = ["fit", "mos", str(made.table), str(made.images), "--rating", "align", "-o", str(output)]
    assert main([*command, "--extractor", f"transformers:{made.model}", "--held-out", "0.4"]) == 0
    said = capsys.readouterr()
    assert "agreement with people: srcc" in said.out
    scorer = load_scorer(output)
    assert (scorer.about, scorer.inputs) == ("alignment", {"prompt"})
    srcc = scorer.facts["held_out"]["srcc"]
    assert srcc["value"] > 0.7
    assert (srcc["clusters"], scorer.facts["contents"]) == (5, 7)
    pictures = torch.stack([load_image(file) for file in made.files])
    with torch.no_grad():
        scores = scorer(pictures, prompt=made.prompts)
    assert float(torch.corrcoef(torch.stack([scores.double(), made.align]))[0, 1]) > 0.8
    assert main(["scorers", str(output)]) == 0
    assert "alignment" in capsys.readouterr().out


def test_pairs_of_images_of_one_prompt(made, tmp_path):
    preferences = read_preferences(made.pairs, images=made.images)
    scorer = fit_pairs(preferences, about="alignment", extractor=f"transformers:{made.model}", held_out=0.4)
    assert scorer.inputs == {"prompt"}
    assert scorer.facts["held_out"]["accuracy"]["value"] > 0.7
    scorer.save(tmp_path / "pairs.safetensors")
    assert load_scorer(tmp_path / "pairs.safetensors").about == "alignment"


def test_a_prompt_is_never_divided_where_the_table_has_no_content(made, tmp_path):
    lines = ["file,stars,words"]
    lines += [f"{f.name},{a:.3f},{p}" for f, a, p in zip(made.files, made.align.tolist(), made.prompts, strict=True)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    columns = {"name": "file", "rating": "stars", "prompt": "words"}
    ratings = read_ratings(tmp_path / "own.csv", columns=columns, higher_is_better=True, images=made.images)
    scorer = fit_mos(ratings, about="alignment", extractor=f"transformers:{made.model}", held_out=0.4)
    assert scorer.facts["contents"] == 7
    assert scorer.facts["held_out"]["srcc"]["clusters"] == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rating", "align"], "name a CLIP-like model"),
        (["--rating", "align", "--extractor", "random"], "random knows none: take a CLIP-like model"),
        (["--rating", "align", "--about", "image"], "would learn something else"),
        (["--rating", "align", "--extractor", "transformers:"], "name a model"),
        (["--rating", "align", "--extractor", "transformers:EMPTY"], "could not be loaded|is no CLIP-like model"),
    ],
)
def test_bad_input_is_one_line(made, more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    more = [part.replace("EMPTY", str(tmp_path / "empty")) for part in more]
    output = str(tmp_path / "mine.safetensors")
    assert main(["fit", "mos", str(made.table), str(made.images), "-o", output, *more]) == 1
    said = capsys.readouterr().err
    assert any(part in said for part in message.split("|"))
    assert "Traceback" not in said
    assert not Path(output).exists()


def test_a_missing_prompt_is_told(made, tmp_path):
    clip = f"transformers:{made.model}"
    ratings = read_ratings(made.table, rating="align", images=made.images)
    ratings.prompt[3] = " "
    with pytest.raises(ValueError, match=r"1 of 48 images have none; the first is sd1\.5_normal_000_3\.png"):
        fit_mos(ratings, extractor=clip)
    ratings.prompt[3] = ratings.prompt[2]
    ratings.names[3] = ratings.names[2]
    ratings.prompt[3] = "another prompt"
    with pytest.raises(ValueError, match=r"is rated with two prompts, .* and 'another prompt'"):
        fit_mos(ratings, extractor=clip)
    with pytest.raises(ValueError, match="about must be one of image, alignment, got 'prompt'"):
        fit_mos(ratings, extractor=clip, about="prompt")
    with pytest.raises(ValueError, match="about must be one of image, alignment, got 'mos'"):
        fit_pairs(read_preferences(made.pairs, images=made.images), about="mos")
    lines = made.pairs.read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join([*lines, lines[1].rpartition(",")[0] + ",another prompt"]) + "\n")
    with pytest.raises(ValueError, match=r"was judged with two prompts, .* and 'another prompt'"):
        fit_pairs(read_preferences(tmp_path / "two.csv", images=made.images), about="alignment", extractor=clip)
    (tmp_path / "none.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    with pytest.raises(ValueError, match="has no prompt"):
        fit_pairs(read_preferences(tmp_path / "none.csv", images=made.images), about="alignment", extractor=clip)
