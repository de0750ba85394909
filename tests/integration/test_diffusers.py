"""`PipelineSampler` and `sweep_guidance` on tiny pipelines made here: nothing is downloaded."""

from __future__ import annotations

import copy
import json
import string

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from qa_hooks.callbacks import Hooks, SampleGrid, ScoreMonitor
from qa_hooks.images import load_image
from qa_hooks.integrations.diffusers import PipelineSampler, RewardFinetuner, grad_last_steps, sweep_guidance
from qa_hooks.integrations.diffusers.guidance import diversity_within
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def unet(**options) -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    return UNet2DModel(8, 1, 1, **blocks, **sizes, **options)


class Inputs(dict):
    """What a feature extractor gives."""

    pixel_values = torch.zeros(1)

    def to(self, device):
        return self


class Checker(nn.Module):
    """A safety checker that flags everything."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, images, clip_input):
        return torch.zeros_like(images), [True] * len(images)


@pytest.fixture(scope="module")
def text_pipeline(tmp_path_factory) -> StableDiffusionPipeline:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    characters = string.ascii_lowercase + " "
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    denoiser = UNet2DConditionModel(
        8,
        4,
        4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        dropout=0.5,
        **sizes,
    )
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **sizes)
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16, bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae, CLIPTextModel(config), tokenizer, denoiser, PNDMScheduler(skip_prk_steps=True), Checker(),
        feature_extractor=lambda images, return_tensors: Inputs(),
    )  # fmt: skip


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [
    lambda: DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=10)),
    lambda: DDIMPipeline(unet(), DDIMScheduler()),
])  # fmt: skip
def test_unconditional_pipelines(make):
    pipeline = make()
    sample = PipelineSampler(pipeline, batch_size=2, num_inference_steps=3)
    images = sample(5, rng())
    assert images.shape == (5, 1, 8, 8)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert torch.equal(images, sample(5, rng()))
    assert not torch.allclose(images, sample(5, rng(2)))
    assert torch.allclose(images, PipelineSampler(pipeline, batch_size=5, num_inference_steps=3)(5, rng()), atol=1e-5)
    assert torch.equal(sample(3), sample(3))
    assert not torch.allclose(sample(3), PipelineSampler(pipeline, seed=1, num_inference_steps=3)(3))
    assert len({tuple(image.flatten().tolist()) for image in images}) == 5


def test_it_is_what_the_pipeline_itself_makes_of_the_same_seeds():
    pipeline = DDIMPipeline(unet(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    sample = PipelineSampler(pipeline, batch_size=4, num_inference_steps=3)
    seen = []
    original = torch.Generator.manual_seed

    class Spy(torch.Generator):
        def manual_seed(self, seed):
            seen.append(seed)
            return original(self, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qa_hooks.integrations.diffusers.sampler.torch.Generator", Spy)
        images = sample(4, rng())
    pipeline.unet.eval()
    generators = [rng(seed) for seed in seen[-4:]]
    own = pipeline(batch_size=4, generator=generators, num_inference_steps=3, output_type="np").images
    assert torch.allclose(images, torch.from_numpy(own).permute(0, 3, 1, 2), atol=1e-5)


def test_the_users_pipeline_stays_as_it_is(text_pipeline, capsys):
    pipeline = text_pipeline
    pipeline.unet.train()
    before = copy.deepcopy((dict(pipeline.config), dict(pipeline.scheduler.config), vars(pipeline.scheduler)))
    parts, names = dict(pipeline.components), set(vars(pipeline))
    state = torch.get_rng_state()
    sample = PipelineSampler(
        pipeline, ["a cat", "a dog"], batch_size=2, num_inference_steps=2, guidance_scale=3.0, negative_prompt="bad"
    )
    images = sample(4, rng())
    assert "it/s" not in capsys.readouterr().err
    assert images.shape == (4, 3, 16, 16)
    assert (images.amax((1, 2, 3)) > 0).all()  # the checker, which blackens all, has not run
    assert torch.equal(images, sample(4, rng()))  # though dropout is on in the user's denoiser
    assert torch.equal(state, torch.get_rng_state())
    assert pipeline.unet.training
    assert dict(pipeline.components) == parts
    assert set(vars(pipeline)) == names
    after = (dict(pipeline.config), dict(pipeline.scheduler.config), vars(pipeline.scheduler))
    assert str(after) == str(before)
    assert torch.is_grad_enabled()
    pipeline("a cat", num_inference_steps=2)
    assert "it/s" in capsys.readouterr().err  # its progress bar is still there


def test_prompts_are_cycled_and_all_have_their_turn(text_pipeline):
    sample = PipelineSampler(text_pipeline, ["a", "b", "c"], batch_size=4, num_inference_steps=1)
    assert sample.with_prompts(6, rng())[1] == ["a", "b", "c"] * 2
    assert len({sample.with_prompts(1, rng(seed))[1][0] for seed in range(12)}) == 3
    # The noise of an image does not depend on the prompts, nor its prompt on the batch size.
    assert (
        sample.with_prompts(4, rng())[1]
        == PipelineSampler(text_pipeline, ["a", "b", "c"], num_inference_steps=1).with_prompts(4, rng())[1]
    )


def test_class_labels():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=1000, norm_num_groups=4, patch_size=2,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    sample = PipelineSampler(DiTPipeline(transformer, vae, DDIMScheduler()), [1, 2], num_inference_steps=2)
    images, labels = sample.with_prompts(4, rng())
    assert images.shape == (4, 3, 8, 8)
    assert labels == [1, 2, 1, 2]


def test_monitors_take_it(text_pipeline):
    sample = PipelineSampler(text_pipeline, ["a cat"], num_inference_steps=1, autocast=torch.bfloat16)
    scorer = brightness()
    writer = MemoryWriter()
    with Hooks([SampleGrid(sample, n=4), ScoreMonitor(scorer, sample=sample, n=4)], writer=writer) as hooks:
        hooks.step()
    assert len(writer.images["qa_images/samples/grid"]) == 1
    assert 0 < writer.scalars["qa_eval/brightness/mean"][0][1] < 1


def test_what_does_not_fit_is_refused(text_pipeline):
    unconditional = DDIMPipeline(unet(), DDIMScheduler())
    with pytest.raises(TypeError, match="must be a Diffusers pipeline"):
        PipelineSampler(unet())
    with pytest.raises(ValueError, match="needs prompts="):
        PipelineSampler(text_pipeline)
    with pytest.raises(ValueError, match="takes no prompts"):
        PipelineSampler(unconditional, ["a"])
    for prompts in ("a cat", []):
        with pytest.raises(ValueError, match="must be a list"):
            PipelineSampler(text_pipeline, prompts)
    for option in ("generator", "num_images_per_prompt", "nonsense"):
        with pytest.raises(ValueError, match=f"no '{option}'"):
            PipelineSampler(text_pipeline, ["a"], **{option: 2})
    with pytest.raises(ValueError, match="n must be"):
        PipelineSampler(unconditional)(0)


def scorers() -> list[FunctionScorer]:
    agreement = lambda x, prompt: x.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompt])  # noqa: E731
    return [
        FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True),
        FunctionScorer(agreement, name="words", higher_is_better=False, inputs=["prompt"]),
    ]


def test_the_guidance_sweep(text_pipeline, tmp_path):
    prompts, scales = ["cat", "a dog"], (1.0, 6.0)
    table = sweep_guidance(
        text_pipeline, scales, scorers(), prompts=prompts, n=6, out=tmp_path / "sweep.png", num_inference_steps=2
    )
    assert [(column.kind, column.name) for column in table.columns] == [
        ("quality", "contrast"), ("agreement", "words"), ("diversity", "random"),
    ]  # fmt: skip
    images, shown = PipelineSampler(text_pipeline, prompts, guidance_scale=6.0, num_inference_steps=2).with_prompts(6)
    expected = images.std((1, 2, 3))
    assert table.columns[0].values[1] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert table.columns[0].errors[1] == pytest.approx(float(expected.std()) / 6**0.5, rel=1e-3)
    words = images.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in shown])
    assert table.columns[1].values[1] == pytest.approx(float(words.mean()), rel=1e-4)
    assert table.columns[2].values[0] != table.columns[2].values[1]
    lines = str(table).splitlines()
    assert len(lines) == 4
    assert "words (lower is better)" in lines[0]
    assert lines[3].startswith("| 6 | ")
    assert torch.equal(load_image(tmp_path / "sweep.png"), table.picture)
    again = sweep_guidance(text_pipeline, scales, scorers(), prompts=prompts, n=6, num_inference_steps=2)
    assert str(again) == str(table)


def test_diversity_within_prompts():
    rows = torch.tensor([[0.0, 0.0], [10.0, 0.0], [3.0, 4.0], [10.0, 2.0]])
    assert diversity_within(rows, ["a", "b", "a", "b"])[0] == pytest.approx((5 + 2) / 2)
    assert diversity_within(rows[:2], ["a", "a"]) == (10.0, 0.0)
    with pytest.raises(ValueError, match="no prompt has two"):
        diversity_within(rows[:2], ["a", "b"])


def test_sweeps_that_cannot_be_made(text_pipeline, tmp_path):
    run = lambda *a, **o: sweep_guidance(text_pipeline, *a, **{"prompts": ["a"], "n": 4, **o})  # noqa: E731
    with pytest.raises(ValueError, match="scales is empty"):
        run([], scorers())
    with pytest.raises(ValueError, match="at least 4, got 3"):
        run([1.0], scorers(), prompts=["a", "b"], n=3)
    with pytest.raises(TypeError, match="must be a qa_hooks Scorer"):
        run([1.0], [torch.mean])
    with pytest.raises(ValueError, match="without a reference"):
        run([1.0], [FunctionScorer(torch.mean, name="x", higher_is_better=True, inputs=["reference"])])
    with pytest.raises(ValueError, match="one name"):
        run([1.0], [scorers()[0]] * 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        run([1.0], scorers(), out=tmp_path / "file" / "sweep.png")
    with pytest.raises(ValueError, match="takes no prompts"):
        sweep_guidance(DDIMPipeline(unet(), DDIMScheduler()), [1.0], [], prompts=["a"], n=2)


class Raw(DDIMPipeline):
    """Its tensors are the sampler's raw end, as those of several pipelines in pixels; its arrays are in [0, 1]."""

    @torch.no_grad()
    def __call__(self, batch_size=1, generator=None, num_inference_steps=3, output_type="pil", guidance_scale=1.0):
        seeds = generator if isinstance(generator, list) else [generator] * batch_size
        x = torch.cat([torch.randn(1, 1, 8, 8, generator=seed) for seed in seeds])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
        if output_type == "pt":
            return ImagePipelineOutput(images=x)
        return ImagePipelineOutput(images=(x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


@pytest.mark.filterwarnings("ignore:.*has no best value, and this loss no ceiling")
def test_images_in_another_range_are_converted_everywhere():
    pipe = Raw(unet().eval(), DDIMScheduler(clip_sample=False))
    sampled = PipelineSampler(pipe, num_inference_steps=3)(4, rng())
    assert 0 <= sampled.min() < sampled.max() <= 1
    call = {"batch_size": 2, "num_inference_steps": 3}
    truth = torch.from_numpy(pipe(**call, generator=rng(), output_type="np").images).permute(0, 3, 1, 2)
    assert pipe(**call, generator=rng(), output_type="pt").images.min() < -0.5

    def sample():
        with grad_last_steps(pipe, 1):
            return pipe(**call, generator=rng(), output_type="pt")

    bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
    tuner = RewardFinetuner(sample, bright, denoiser=pipe.unet, kl_weight=0.0)
    for _ in range(2):  # the range is asked for once, and kept
        loss, info = tuner.step()
        torch.testing.assert_close(tuner.images, truth)
        assert float(info["reward"]) == pytest.approx(float(truth.mean()))
        loss.backward()
        assert float(pipe.unet.conv_out.weight.grad.norm()) > 0


def test_a_range_that_cannot_be_known_is_refused():
    class NoArrays(Raw):
        @torch.no_grad()
        def __call__(self, generator=None, output_type="pt"):
            if output_type == "np":
                raise NotImplementedError
            return super().__call__(2, generator, output_type=output_type)

    class OtherArrays(Raw):
        @torch.no_grad()
        def __call__(self, generator=None, output_type="pt"):
            output = super().__call__(2, generator, output_type=output_type)
            return output if output_type == "pt" else ImagePipelineOutput(images=0.3 * output.images)

    for kind, match in ((NoArrays, "no NumPy images to compare"), (OtherArrays, "neither as they are nor from")):
        pipe = kind(unet().eval(), DDIMScheduler(clip_sample=False))
        with pytest.raises(ValueError, match=match), grad_last_steps(pipe):
            pipe(generator=rng())


@pytest.mark.filterwarnings("ignore:.*has no best value, and this loss no ceiling")
def test_a_sample_in_another_range_than_the_reward_is_told():
    weight = nn.Linear(1, 1, bias=False)
    bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
    tuner = RewardFinetuner(lambda: weight(torch.linspace(-1, 1, 64).view(1, 1, 8, 8)[..., None])[..., 0], bright,
                            denoiser=weight, kl_weight=0.0)  # fmt: skip
    nn.init.constant_(weight.weight, 1.0)
    with pytest.warns(UserWarning, match=r"values lie in \[-1, 1\] under value_range=\(0, 1\)"):
        tuner.step()


class OfEmbeddings(Raw):
    """Conditioned on tensors, without prompts and without a number of images."""

    @torch.no_grad()
    def __call__(self, image_embeds, num_inference_steps=2, generator=None, output_type="pil"):
        output = super().__call__(len(image_embeds), generator, num_inference_steps, output_type)
        return ImagePipelineOutput(images=output.images * image_embeds[:, :1, None, None].numpy())


def test_conditions_that_are_tensors_are_cycled_like_prompts():
    pipe = OfEmbeddings(unet().eval(), DDIMScheduler())
    embeds = torch.tensor([[0.0], [1.0]])
    sample = PipelineSampler(pipe, image_embeds=embeds, batch_size=3)
    images = sample(4, rng())
    assert images.shape == (4, 1, 8, 8)
    assert [bool(image.any()) for image in images] == [False, True, False, True]
    assert torch.equal(images, sample(4, rng()))
    torch.testing.assert_close(images, PipelineSampler(pipe, image_embeds=embeds, batch_size=1)(4, rng()))
    assert {bool(sample(1, rng(seed)).any()) for seed in range(12)} == {False, True}
    with pytest.raises(ValueError, match=r"neither prompts nor a batch_size: give its conditions as tensors"):
        PipelineSampler(pipe, num_inference_steps=2)


class OfBoth(Raw):
    """A prompt and a picture to begin from."""

    @torch.no_grad()
    def __call__(self, prompt, image=None, num_inference_steps=2, generator=None, output_type="pil"):
        if len(image) not in (1, len(prompt)):
            raise RuntimeError(f"{len(prompt)} prompts and {len(image)} images")
        level = torch.tensor([float(text) for text in prompt])[:, None, None, None] - image.mean(
            (1, 2, 3), keepdim=True
        )
        return ImagePipelineOutput(images=level.expand(-1, 1, 8, 8).movedim(1, -1).numpy())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_pictures_with_a_row_for_each_prompt_go_with_their_prompts(batch_size):
    pipe, levels = OfBoth(unet().eval(), DDIMScheduler()), [0.0, 0.25, 0.5]
    image = torch.tensor(levels)[:, None, None, None].expand(3, 3, 8, 8)
    prompts = [str(level + 0.125) for level in levels]
    sample = PipelineSampler(pipe, prompts, image=image, batch_size=batch_size)
    for n in (1, 2, 3, 4, 7):
        torch.testing.assert_close(sample(n, rng(n)), torch.full((n, 1, 8, 8), 0.125))
    for one in (image[:1], image[0][None]):
        assert PipelineSampler(pipe, prompts, image=one, batch_size=batch_size)(4, rng()).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match="image must have one row, or one for each of the 3 prompts, got 2"):
        PipelineSampler(pipe, prompts, image=image[:2])
