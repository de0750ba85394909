"""The monitors of the dial: what they write, and that they leave the run alone."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from qa_hooks.callbacks import Hooks, ScoreMonitor
from qa_hooks.data import QualityTable
from qa_hooks.images import load_image
from qa_hooks.integrations.diffusers import PipelineSampler, QualityAdapter, QualityCurve, QualityStrip
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter


class Dial(torch.nn.Module):
    """A denoiser whose embedding of the time is the brightness that it makes: a dial that works, without training."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = Embedding()

    def forward(self, sample, timestep):
        return sample + self.time_embedding(sample).mean(1)[:, None, None, None]


class Embedding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_2 = torch.nn.Linear(2, 4)

    def forward(self, sample):
        return torch.zeros(len(sample), 4)


def scorer(name: str, sign: float = 1.0, higher: bool = True) -> FunctionScorer:
    return FunctionScorer(lambda x: sign * x.mean((1, 2, 3)), name=name, higher_is_better=higher)


@pytest.fixture
def dial():
    table = QualityTable([str(i) for i in range(30)], torch.linspace(-2, 2, 30)[:, None], "bright", True)
    network = Dial()
    adapter = QualityAdapter(network, table, seed=3)
    with torch.no_grad():
        tokens = adapter.encode(torch.tensor([[-1.0], [1.0]])).flatten(1)
        adapter.branches[0].project.weight.copy_(0.02 * (tokens[1] - tokens[0]).expand(4, -1))

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        with torch.no_grad():
            return 0.5 + network(0.05 * torch.randn(n, 3, 8, 8, generator=generator), 0).clamp(-0.5, 0.5)

    return adapter, sample


def test_curve_and_strip(dial, tmp_path):
    adapter, sample = dial
    real = 0.5 + 0.05 * torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    writer = MemoryWriter()
    scorers = [scorer("bright"), scorer("dark", -1.0, higher=False)]
    curve = QualityCurve(
        adapter, sample, scorers, real=real, extractor={"type": "random", "width": 2}, levels=[-1, 0, 1], n=50, every=1
    )
    strip = QualityStrip(adapter, sample, n=2, every=1, folder=tmp_path)
    turned = ScoreMonitor(scorer("bright"), sample=adapter.at(1.0, sample), n=50, every=1, name="turned")
    hooks = Hooks([curve, strip, turned], writer=writer)
    state, weights = torch.get_rng_state(), [p.clone() for p in adapter.parameters()]
    adapter.train()
    hooks.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert adapter.training
    assert all(torch.equal(a, b) for a, b in zip(weights, adapter.parameters(), strict=True))
    assert adapter.dial.now is None
    assert curve.last["bright_spearman"] == pytest.approx(1.0)
    assert curve.last["dark_spearman"] == pytest.approx(1.0)  # in the direction of its goodness
    assert curve.last["bright_span"] == pytest.approx(curve.last["bright_q=1"] - curve.last["bright_q=-1"])
    assert curve.last["bright_span"] == pytest.approx(-curve.last["dark_span"])
    assert curve.last["bright_span_low"] <= curve.last["bright_span"] <= curve.last["bright_span_high"]
    assert curve.last["bright_q=1"] == pytest.approx(-curve.last["dark_q=1"])
    assert curve.last["bright_q=1"] == pytest.approx(turned.last["mean"], abs=2e-3)
    levels = [curve.last[f"bright_q={level}"] for level in (-1, 0, 1)]
    assert levels == sorted(levels)
    tags = set(writer.scalars)
    for level in (-1, 0, 1):
        assert {f"qa_eval/bright_q={level}/{stat}" for stat in ("mean", "low", "high")} <= tags
        assert any(tag.startswith("qa_eval/fd_random") and tag.endswith(f"_n=50_q={level}/low") for tag in tags)
        assert any("recall" in tag and tag.endswith(f"_q={level}/value") for tag in tags)
    assert {f"qa_eval/bright_span/{stat}" for stat in ("value", "low", "high", "deviations")} <= tags
    assert {"qa_images/quality/strip", "qa_images/quality/bright"} <= set(writer.images)
    assert load_image(tmp_path / "00000001.png").shape[0] == 3
    other = QualityCurve(adapter, sample, scorers, levels=[-1, 0, 1], every=1)
    other.load_state_dict(curve.state_dict())
    assert other.last == curve.last


def test_a_dial_that_attacks_its_metric_is_told_once(dial):
    adapter, sample = dial
    curve = QualityCurve(adapter, sample, [scorer("bright"), scorer("held_out", -1.0)], n=8, every=1)
    hooks = Hooks([curve], writer=MemoryWriter())
    with pytest.warns(UserWarning, match=r"raises bright \(Spearman 1\.00\) and not held_out \(Spearman -1\.00\)"):
        hooks.step()
    hooks.step()
    assert curve.last["step"] == 2


def test_an_untrained_dial_has_no_order(dial):
    adapter, sample = dial
    with torch.no_grad():
        adapter.branches[0].project.weight.zero_()
    curve = QualityCurve(adapter, sample, [scorer("bright")], n=8, every=1)
    Hooks([curve], writer=MemoryWriter()).step()
    assert curve.last["bright_spearman"] == curve.last["bright_span"] == 0.0


@pytest.mark.parametrize(
    ("slope", "noise", "words"),
    [
        (0.02, 0.0, "standard deviations; Spearman of the means: 1.00"),
        (1e-5, 0.0, "standard deviations: hardly any change"),  # beyond chance over the same noise, and nothing to see
        (1e-5, 0.1, "no change that can be told from chance"),
    ],
)
def test_the_rank_of_settings_that_differ_by_nothing_is_not_praised(slope, noise, words, caplog, monkeypatch):
    """Means at nine settings always have some order; what counts is how far apart the ends are."""
    import qa_hooks.integrations.diffusers.quality.curve as module

    titles = []
    monkeypatch.setattr(module, "chart", lambda lines, title, **options: titles.append(title))
    table = QualityTable([str(i) for i in range(30)], torch.linspace(-2, 2, 30)[:, None], "bright", True)
    adapter = QualityAdapter(Dial(), table)
    curve = QualityCurve(adapter, lambda n, g: torch.rand(n, 3, 8, 8, generator=g), [scorer("bright")], every=1)
    drawn = torch.Generator().manual_seed(5)

    def at(q):  # the same noise at each setting, and some of its own
        def sample(n, generator):
            images = 0.5 + 0.1 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
            return (images + q * slope + noise * (torch.rand(n, 1, 1, 1, generator=drawn) - 0.5)).expand(n, 3, 8, 8)

        return sample

    curve.samples = [at(q) for q in curve.levels]
    caplog.set_level("INFO", "qa_hooks")
    Hooks([curve], writer=MemoryWriter()).step()
    (title,) = titles
    assert title.endswith(words)
    assert title in caplog.text
    told = "Spearman" in words
    assert ("WARNING" in caplog.text) == (not told)
    assert curve.last["bright_spearman"] == (pytest.approx(1.0) if told else 0.0)
    holds = curve.last["bright_span_low"] <= 0 <= curve.last["bright_span_high"]
    assert holds == (noise > 0)


def test_a_held_out_score_that_does_not_move_is_told(dial):
    adapter, sample = dial
    still = FunctionScorer(lambda x: torch.linspace(0, 1, len(x)), name="still", higher_is_better=True)
    curve = QualityCurve(adapter, sample, [scorer("bright"), still], n=8, every=1)
    with pytest.warns(UserWarning, match=r"not still \(no change that counts\).*or n=8 images do not show it"):
        Hooks([curve], writer=MemoryWriter()).step()


def test_at_gives_a_sampler_of_a_pipeline():
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **kinds)
    table = QualityTable(["a", "b"], torch.tensor([[0.0], [1.0]]), "bright", True)
    adapter = QualityAdapter(unet, table)
    with torch.no_grad():
        adapter.branches[0].project.weight.normal_(generator=torch.Generator().manual_seed(0))
    sample = PipelineSampler(DDIMPipeline(unet, DDIMScheduler()), num_inference_steps=2)
    images = [adapter.at(q, sample)(2, torch.Generator().manual_seed(0)) for q in (-0.5, 0.5, 0.5)]
    assert torch.equal(images[1], images[2])
    assert not torch.equal(images[0], images[1])
    off = adapter.at(0.5, sample, scale=0)(2, torch.Generator().manual_seed(0))
    assert torch.equal(off, sample(2, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda a, s: QualityStrip(None, s), TypeError, "must be a QualityAdapter"),
        (lambda a, s: QualityStrip(a, s, levels=[1, 0]), ValueError, "ascending"),
        (lambda a, s: QualityStrip(a, s, levels=[1]), ValueError, "ascending"),
        (lambda a, s: QualityStrip(a, None), TypeError, "sample must be callable"),
        (lambda a, s: QualityCurve(a, s, []), ValueError, "scorers of different names"),
        (lambda a, s: QualityCurve(a, s, [scorer("b"), scorer("b")]), ValueError, "scorers of different names"),
        (lambda a, s: QualityCurve(a, s, ["niqe"]), TypeError, "qa_hooks Scorer"),
        (lambda a, s: QualityCurve(a, s, [scorer("b")], real=torch.rand(60, 3, 8, 8)), ValueError, "go together"),
        (lambda a, s: QualityCurve(a, s, [scorer("b")], real=torch.rand(60, 3, 8, 8), extractor="random", n=9),
         ValueError, "at least 50"),
        (lambda a, s: a.at("high", s), TypeError, "q must be a number"),
        (lambda a, s: a.at(1.0, 3), TypeError, "must be callable"),
    ],
)  # fmt: skip
def test_monitors_without_sense_are_refused(dial, make, kind, message):
    with pytest.raises(kind, match=message):
        make(*dial)
