"""Scorers of an image and its prompt through transformers and imscore, against the libraries' own calls."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from PIL import Image
from torch import nn

from qa_hooks.losses import ScoreLoss
from qa_hooks.rewards.check import check_reward
from qa_hooks.scorers import create_scorer
from qa_hooks.scorers.libraries.imscore import SCORERS, ImscoreScorer
from qa_hooks.scorers.libraries.transformers import prepared
from tiny_clip import SIDE, clip_config, save_clip, save_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ["a red cat", "photo of a blue house", "dog"]


def images(height: int = SIDE, width: int = SIDE, count: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


@pytest.fixture(scope="module", params=[False, True], ids=["clip", "siglip"])
def folder(request, tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("model"), siglip=request.param)


def own_call(folder, pictures: torch.Tensor) -> torch.Tensor:
    """What somebody writes who has never heard of us."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    files = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    pixels = AutoImageProcessor.from_pretrained(folder)(files, return_tensors="pt")
    texts = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding="max_length", max_length=12, return_tensors="pt")
    texts.pop("token_type_ids", None)
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**pixels, **texts).logits_per_image.diagonal()


@pytest.mark.parametrize(("size", "tolerance"), [((SIDE, SIDE), 1e-4), ((50, 71), 0.05), ((90, 40), 0.15)])
def test_scores_are_the_librarys(folder, size, tolerance):
    scorer = create_scorer(f"transformers:{folder}")
    wanted = own_call(folder, images(*size))
    found = scorer(images(*size), prompt=PROMPTS)
    torch.testing.assert_close(found, wanted, atol=tolerance * float(wanted.std()) + 1e-4, rtol=1e-4)
    assert (scorer.higher_is_better, scorer.inputs, scorer.score_range) == (True, frozenset({"prompt"}), None)
    assert scorer.nominal_range[0] <= float(found.min()) <= float(found.max()) <= scorer.nominal_range[1]
    assert scorer.licence


def test_an_images_score_does_not_depend_on_its_neighbours(folder):
    scorer = create_scorer(f"transformers:{folder}")
    together = scorer(images(), prompt=PROMPTS)
    alone = torch.cat([scorer(images()[i : i + 1], prompt=[PROMPTS[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (50, 71)])
def test_the_gradient_reaches_the_pixels_and_is_right(folder, size):
    scorer = create_scorer(f"transformers:{folder}", value_range=(-1, 1))
    pictures = (images(*size).float() / 127.5 - 1).mul(0.9).requires_grad_()
    scorer(pictures, prompt=PROMPTS).sum().backward()
    direction = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)) * pictures.grad.abs().mean()
    direction = direction + pictures.grad
    step = 1e-3 / float(direction.abs().max())
    with torch.no_grad():
        ends = [scorer((pictures + sign * step * direction), prompt=PROMPTS).sum() for sign in (1, -1)]
    slope = float((pictures.grad * direction).sum()) * 2 * step
    assert float(ends[0] - ends[1]) == pytest.approx(slope, rel=0.05)


def test_it_is_a_reward(folder):
    scorer = create_scorer(f"transformers:{folder}")
    report = check_reward(scorer, images().float() / 255, prompt=PROMPTS)
    assert "has no gradient" not in str(report)
    loss = ScoreLoss(scorer, ceiling=None)
    pictures = (images().float() / 255).requires_grad_()
    loss(pictures, prompt=PROMPTS).backward()
    assert float(pictures.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in scorer.metric.parameters())


def test_what_is_missing_or_wrong_is_told(folder, tmp_path, monkeypatch):
    scorer = create_scorer(f"transformers:{folder}")
    with pytest.raises(ValueError, match="needs prompt="):
        scorer(images())
    with pytest.raises(ValueError, match="list of 3 strings"):
        scorer(images(), prompt="a cat")
    with pytest.raises(ValueError, match="name a model"):
        create_scorer("transformers:")
    with pytest.raises(ValueError, match="no CLIP-like model"):
        create_scorer(f"transformers:{tmp_path}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="could not be loaded"):
        create_scorer("transformers:nobody/no-such-model-anywhere")
    with pytest.raises(TypeError, match="made again by create_scorer"):
        scorer.save(tmp_path / "x.safetensors")


def test_a_model_without_two_towers_is_refused(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIP-like model"):
        create_scorer(f"transformers:{tmp_path}")


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="Pillow's filter 1"):
        prepared(torch.rand(1, 3, 8, 8), {"do_resize": True, "resample": 1, "size": {"height": 4, "width": 4}})


# imscore: a stand-in for its classes everywhere, and its own classes where it is installed.


class Judge(nn.Module):
    """What a scorer of imscore is: `score(pixels in [0, 1], prompts)`; the shape (N, 1) of ImageReward."""

    def __init__(self, *, by_batch: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.by_batch, self.seen = by_batch, []

    def score(self, pixels, prompts=None):
        self.seen.append((tuple(pixels.shape), float(pixels.min()), float(pixels.max()), prompts, pixels.dtype))
        dtype = self.layer.weight.dtype
        scores = self.layer(pixels.to(dtype).mean((2, 3)))
        return scores / scores.abs().max() if self.by_batch else scores

    @classmethod
    def from_pretrained(cls, name):
        made = cls()
        made.name = name
        return made


@pytest.mark.parametrize("metric", SCORERS)
def test_imscore_is_called_with_unit_images_and_prompts(metric):
    judge = Judge()
    scorer = ImscoreScorer(metric, model=judge, value_range=(-1, 1))
    prompts = {"prompt": PROMPTS} if scorer.inputs else {}
    found = scorer(images().float() / 127.5 - 1, **prompts)
    assert found.shape == (3,)
    wanted = Judge.score(judge, images().float() / 255, PROMPTS).flatten().float()
    torch.testing.assert_close(found, wanted, atol=2e-3 if SCORERS[metric].half else 1e-5, rtol=1e-3)
    assert judge.seen[0][1] >= 0
    assert judge.seen[0][2] <= 1
    assert judge.seen[0][3] == (([PROMPTS[0]] if SCORERS[metric].each else PROMPTS) if prompts else ["", "", ""])
    assert scorer.higher_is_better
    assert scorer.licence
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_a_scorer_that_mixes_its_batch_is_called_image_by_image():
    scorer = ImscoreScorer("mps", model=Judge(by_batch=True))
    together = scorer(images(), prompt=PROMPTS)
    alone = torch.cat([scorer(images()[i : i + 1], prompt=[PROMPTS[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_imscore_by_name(monkeypatch):
    package, module = types.ModuleType("imscore"), types.ModuleType("imscore.pickscore.model")
    module.PickScorer = Judge
    for name, part in {"imscore": package, "imscore.pickscore": types.ModuleType("p"), module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, part)
    scorer = create_scorer("imscore:pickscore")
    assert scorer.metric.name == "RE-N-Y/pickscore"
    assert scorer.name == "imscore_pickscore"
    assert create_scorer({"type": "imscore:pickscore", "weights": "mine"}).metric.name == "mine"


def test_what_imscore_cannot_do_is_told_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "imscore", None)
    with pytest.raises(ImportError, match="pip install imscore"):
        create_scorer("imscore:pickscore")
    with pytest.raises(ValueError, match="unknown metric imscore:hpsv9"):
        create_scorer("imscore:hpsv9")
    with pytest.raises(TypeError, match="must be a scorer of imscore"):
        ImscoreScorer("pickscore", model=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="leave weights out"):
        ImscoreScorer("pickscore", model=Judge(), weights="mine")

    class Old(Judge):
        def score(self, pixels, prompts=None):
            return torch.norm(object())

    with pytest.raises(RuntimeError, match=r"imscore .* and transformers .* do not fit each other"):
        ImscoreScorer("pickscore", model=Old())(images(), prompt=PROMPTS)


def test_a_vision_language_model_is_a_monitor():
    scorer = ImscoreScorer("hpsv3", model=Judge())
    assert not scorer.differentiable
    with pytest.raises(ValueError, match="gradient"):
        ScoreLoss(scorer, ceiling=None)


needs_imscore = pytest.mark.skipif(importlib.util.find_spec("imscore") is None, reason="needs imscore")


def bare(kind: type[nn.Module], **parts) -> nn.Module:
    """One of imscore's classes without its constructor, which downloads: with small random parts."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    for name, part in parts.items():
        setattr(made, name, part)
    return made.eval()


def compared(metric: str, judge: nn.Module) -> None:
    pictures = images(40, 56).float() / 255
    scorer = ImscoreScorer(metric, model=judge)
    prompts = {"prompt": PROMPTS} if scorer.inputs else {}
    with torch.no_grad():
        wanted = judge.score(pictures, PROMPTS).reshape(-1)
    torch.testing.assert_close(scorer(pictures, **prompts), wanted.float())
    pictures.requires_grad_()
    scorer(pictures, **prompts).sum().backward()
    assert float(pictures.grad.abs().sum()) > 0


@needs_imscore
def test_the_real_clipscore(folder):
    from imscore.preference.model import CLIPScore
    from torchvision import transforms
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    class Processor:
        def __call__(self, text, padding, truncation, return_tensors):
            found = tokenizer(
                text, padding="max_length", max_length=12, truncation=truncation, return_tensors=return_tensors
            )
            found.pop("token_type_ids", None)
            return found

    steps = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    compared("clipscore", bare(CLIPScore, model=model, processor=Processor(), tform=steps))


@needs_imscore
def test_the_real_laion_aesthetic():
    from imscore.aesthetic.model import LAIONAestheticScorer
    from torchvision import transforms
    from transformers import CLIPVisionModelWithProjection

    config = clip_config().vision_config
    config.projection_dim = 8
    parts = {
        "clip": CLIPVisionModelWithProjection(config), "mlp": nn.Linear(8, 1), "resize": transforms.Resize(SIDE),
        "crop": transforms.CenterCrop(SIDE), "normalize": transforms.Normalize([0.5] * 3, [0.3] * 3),
    }  # fmt: skip
    compared("laion-aesthetic", bare(LAIONAestheticScorer, **parts))


@needs_imscore
def test_the_real_pickscore_runs_or_says_by_name_why_not(tmp_path):
    from imscore.pickscore.model import PickScorer
    from torchvision import transforms
    from transformers import AutoTokenizer, CLIPModel

    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    class Processor:
        def __call__(self, text, padding, truncation, max_length, return_tensors):
            found = tokenizer(
                text, padding=padding, max_length=12, truncation=truncation, return_tensors=return_tensors
            )
            found.pop("token_type_ids", None)
            return found

    parts = {
        "model": CLIPModel(clip_config()), "processor": Processor(), "resize": transforms.Resize(SIDE),
        "crop": transforms.CenterCrop(SIDE), "normalize": transforms.Normalize([0.5] * 3, [0.3] * 3),
    }  # fmt: skip
    judge = bare(PickScorer, **parts)
    try:
        judge.score(images(40, 56).float() / 255, PROMPTS)
    except (AttributeError, TypeError):
        with pytest.raises(RuntimeError, match="do not fit each other"):
            ImscoreScorer("pickscore", model=judge)(images(40, 56), prompt=PROMPTS)
    else:
        compared("pickscore", judge)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_file_that_is_cut_off_is_named_with_its_folder(name, tmp_path):
    broken = save_clip(tmp_path / "model")
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: len(content) // 2])
    with pytest.raises((RuntimeError, ValueError), match="model") as caught:
        create_scorer(f"transformers:{broken}")
    assert str(broken) in str(caught.value)
    assert type(caught.value) in (RuntimeError, ValueError)
