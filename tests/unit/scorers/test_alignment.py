"""A scorer of images and prompts together: its features, its head, its file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from qa_hooks.features import create_extractor
from qa_hooks.losses import ScoreLoss
from qa_hooks.ratings import agreement
from qa_hooks.scorers import OpinionScorer, create_scorer, load_scorer
from qa_hooks.scorers.opinions.alignment import joined, joined_width
from qa_hooks.scorers.opinions.head import fit_head
from qa_hooks.scorers.opinions.targets import RatingTargets
from tiny_clip import LENGTH, SIDE, WORDS, save_clip

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ["a red cat", "photo of a blue house", "dog"]


def images(height: int = SIDE, width: int = SIDE, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[False, True], ids=["clip", "siglip"])
def folder(request, tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("model"), siglip=request.param)


def fitted(folder, *, spread: bool = False) -> OpinionScorer:
    """The rating is the cosine, of 24 images with the prompts in turn."""
    scorer = OpinionScorer(f"transformers:{folder}", about="alignment")
    with torch.no_grad():
        rows = scorer.rows(images(count=24), prompt=PROMPTS * 8)
    ratings = rows[:, 0].double()
    said = torch.full_like(ratings, 0.3 * float(ratings.std())) if spread else None
    return scorer.fit(rows, RatingTargets(ratings, said), list(range(24)))


@pytest.mark.parametrize("size", [(SIDE, SIDE), (50, 71)])
def test_the_cosine_is_the_models_own_logit(folder, size):
    extractor, scorer = create_extractor(f"transformers:{folder}"), create_scorer(f"transformers:{folder}")
    with torch.no_grad():
        u, v = extractor(images(*size)), extractor.prompts(PROMPTS)
        wanted = scorer(images(*size), prompt=PROMPTS)
    low, high = scorer.nominal_range  # bias - scale, bias + scale
    torch.testing.assert_close((u * v).sum(1) * (high - low) / 2 + (high + low) / 2, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3))


def test_a_prompt_does_not_depend_on_its_neighbours(folder):
    extractor = create_extractor(f"transformers:{folder}")
    with torch.no_grad():
        together, alone = extractor.prompts(PROMPTS), torch.cat([extractor.prompts([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_row_is_what_it_says():
    g = torch.Generator().manual_seed(0)
    u, v = (torch.nn.functional.normalize(torch.randn(4, 6, generator=g), dim=1) for _ in range(2))
    row = joined(u, v)
    assert row.shape == (4, joined_width(6))
    for number in range(4):
        cosine = sum(float(a) * float(b) for a, b in zip(u[number], v[number], strict=True))
        assert row[number, :6].tolist() == pytest.approx([cosine] * 6, abs=1e-6)
        torch.testing.assert_close(row[number, 6:12], u[number] * v[number])
        torch.testing.assert_close(row[number, 12:], u[number])


def test_it_scores_images_with_prompts_and_has_a_gradient(folder):
    scorer = fitted(folder)
    assert scorer.inputs == {"prompt"}
    pictures = images(count=6).requires_grad_()
    scores = scorer(pictures, prompt=PROMPTS * 2)
    with torch.no_grad():
        cosines = scorer.rows(pictures, prompt=PROMPTS * 2)[:, 0]
    assert float(torch.corrcoef(torch.stack([scores.detach(), cosines]))[0, 1]) > 0.95
    ScoreLoss(scorer, ceiling=None)(pictures, prompt=PROMPTS * 2).backward()
    assert float(pictures.grad.abs().sum()) > 0
    direction = pictures.grad / pictures.grad.norm()
    with torch.no_grad():
        ends = [scorer(pictures + sign * 0.02 * direction, prompt=PROMPTS * 2).sum() for sign in (1, -1)]
    slope = torch.autograd.grad(scorer(pictures, prompt=PROMPTS * 2).sum(), pictures)[0]
    assert float(ends[0] - ends[1]) == pytest.approx(0.04 * float((slope * direction).sum()), rel=0.1)


def test_a_file_of_it_scores_the_same_and_is_checked(folder, tmp_path):
    scorer, path = fitted(folder, spread=True), tmp_path / "mine.safetensors"
    scorer.save(path)
    again = load_scorer(path)
    torch.testing.assert_close(again(images(), prompt=PROMPTS), scorer(images(), prompt=PROMPTS))
    torch.testing.assert_close(again.spread(images(), prompt=PROMPTS), scorer.spread(images(), prompt=PROMPTS))
    assert again.about == "alignment"
    assert again.fingerprint == scorer.fingerprint
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    short = {**tensors, "centre": tensors["centre"][:-1]}
    save_file(short, path, metadata)
    with pytest.raises(ValueError, match="centre must hold finite numbers of the shape"):
        load_scorer(path)


def test_a_model_that_has_changed_is_noticed(tmp_path):
    model = save_clip(tmp_path / "model")
    scorer = fitted(model)
    scorer.save(tmp_path / "mine.safetensors")
    words = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(words.replace(f'"{WORDS[2]}"', '"hound"'))
    with pytest.raises(ValueError, match="other weights or preprocessing"):
        load_scorer(tmp_path / "mine.safetensors")
    for file in model.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"cannot be made here|no CLIP-like model"):
        load_scorer(tmp_path / "mine.safetensors")


def test_what_is_missing_or_wrong_is_told(folder):
    scorer = fitted(folder)
    with pytest.raises(ValueError, match="needs prompt="):
        scorer(images())
    with pytest.raises(ValueError, match="list of 3 strings"):
        scorer(images(), prompt=PROMPTS[:2])
    with pytest.raises(ValueError, match="without people's spreads"):
        scorer.spread(images(), prompt=PROMPTS)
    with pytest.raises(ValueError, match="needs prompt="):
        scorer.spread(images())
    with pytest.raises(ValueError, match=r"random4.* knows none: take a CLIP-like model"):
        OpinionScorer({"type": "random", "width": 4}, about="alignment")
    with pytest.raises(ValueError, match="about must be one of image, alignment, got 'both'"):
        OpinionScorer(f"transformers:{folder}", about="both")
    with pytest.raises(ValueError, match="knows images and no prompts"):
        create_extractor("random").prompts(["a"])
    with pytest.raises(TypeError, match="has no option weights"):
        create_extractor(f"transformers:{folder}", weights=None)
    with pytest.raises(ValueError, match="name a model"):
        create_extractor("transformers:")
    with pytest.raises(ValueError, match=r"features must be \(n,"):
        scorer.score_features(torch.rand(2, scorer.extractor.dim))


def test_images_alone_can_be_judged_in_its_features_too(folder):
    scorer = OpinionScorer(f"transformers:{folder}")
    pictures = images(count=12)
    with torch.no_grad():
        features = scorer.extractor(pictures)
    scorer.fit(features, RatingTargets(features[:, 0].double()), list(range(12)))
    assert scorer.inputs == frozenset()
    assert scorer(pictures).shape == (12,)


def test_a_long_prompt_is_cut_as_the_library_cuts_it(folder):
    extractor = create_extractor(f"transformers:{folder}")
    with torch.no_grad():
        first = extractor.prompts(["cat " * LENGTH, "cat " * (2 * LENGTH)])
    torch.testing.assert_close(first[0], first[1])


def made_up(seed: int, *, some: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (half of their prompt and half of anything) and prompts, ratings, and the prompt of each."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    unit = torch.nn.functional.normalize
    spoken, prompt = unit(draw(175, 64) + draw(1, 64), dim=1), torch.arange(700) % 175
    amount = 0.25 + 0.15 * torch.rand(700, 1, generator=g)
    u = unit(amount * spoken[prompt] + unit(draw(700, 64) + 0.8 * draw(1, 64), dim=1), dim=1)
    v = spoken[prompt]
    counts = (torch.rand(64, generator=g) < 0.3).float() if some else torch.ones(64)
    heard = (u * v * counts).sum(1)
    rating = (heard - heard.mean()) / heard.std() + 0.5 * draw(700)
    return u, v, rating.double(), prompt


@pytest.mark.parametrize(("some", "least"), [(False, -0.02), (True, 0.05)])
def test_the_head_hears_the_cosine_and_more_where_more_is_said(some, least):
    """100 prompts of 4 images to fit, 75 held out. Where all terms count alike there is nothing to gain, or to lose."""
    gains = []
    for seed in range(3):
        u, v, rating, prompt = made_up(seed, some=some)
        held = prompt >= 100
        rows = joined(u, v)
        head, _ = fit_head(rows[~held], RatingTargets(rating[~held]), prompt[~held].tolist())
        said = head(rows[held].double())[:, 0]
        own = agreement(rows[held][:, 0], rating[held]).value
        gains.append(agreement(said, rating[held]).value - own)
    assert sum(gains) / 3 > least
