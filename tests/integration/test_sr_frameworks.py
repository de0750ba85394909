"""BasicSR, traiNNer-redux and neosr: what is registered, by the contract of each."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sr_standins import install

from qa_hooks.data import select_ground_truth
from qa_hooks.images import save_image
from qa_hooks.integrations.sr import launch, register
from qa_hooks.integrations.sr.conventions import FRAMEWORKS, find_framework
from qa_hooks.integrations.sr.metrics import framework_metrics
from qa_hooks.losses import SSIMLoss
from qa_hooks.scorers import FunctionScorer
from qa_hooks.scorers.catalogue import SPECS, Entry

NAMES = [framework.package for framework in FRAMEWORKS.values()]
SHARP = {"type": "sharp"}


class Sharp(FunctionScorer):
    """A bounded score of an image alone that wants local contrast; what the tests call the scorer "sharp"."""

    def __init__(self, *, value_range=(0.0, 1.0)):
        def score(images):
            return (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) * 4

        super().__init__(score, name="sharp", higher_is_better=True, score_range=(0.0, 1.0), value_range=value_range)


@pytest.fixture(autouse=True)
def _sharp(monkeypatch):
    monkeypatch.setitem(SPECS, "sharp", Entry(__name__, "Sharp"))


@pytest.fixture(params=NAMES)
def framework(request, monkeypatch):
    """The stand-in, registered into."""
    standin = install(monkeypatch, request.param)
    standin.facts = find_framework(request.param)
    standin.names = register(request.param)
    return standin


@pytest.fixture(scope="session")
def sets(photographs, tmp_path_factory):
    """Crops of photographs as originals, a blurred and a sharper version of each."""
    root = tmp_path_factory.mktemp("sets")
    for number, image in enumerate(photographs[:, :, :64, :64]):
        blurred = torch.nn.functional.avg_pool2d(image[None], 3, 1, 1)[0]
        for name, version in (("original", image), ("blurred", blurred), ("sharper", 2 * image - blurred)):
            (root / name).mkdir(exist_ok=True)
            save_image((version.clamp(0, 1) * 255).byte(), root / name / f"{number}.png")
    return root


def loss_class(framework, words):
    return framework.LOSS_REGISTRY.get(framework.facts.named(words))


def model_class(framework):
    if framework.facts.loss_list:
        return framework.models.SRModel
    name = "qa_image" if framework.facts.snake_names else "QASRModel"
    return framework.MODEL_REGISTRY.get(name)


def options(framework, folder, **more):
    train = {"pixel_opt": {"type": "L1Loss"}, **more.pop("train", {})}
    return framework.options(path={"models": str(folder), **more.pop("path", {})}, train=train, **more)


def batches(count=4, candidates=False):
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        gt = torch.rand(2, 3, 32, 32, generator=generator)
        batch = {"lq": torch.nn.functional.avg_pool2d(gt, 2), "gt": gt}
        if candidates:
            batch["candidates"] = torch.rand(2, 3, 3, 32, 32, generator=generator)
        found.append(batch)
    return found


def trained(model, data):
    for number, batch in enumerate(data, 1):
        model.feed_data(batch)
        model.optimize_parameters(number)
    return [p.detach().clone() for p in model.net_g.parameters()]


# ---- registering


def test_the_names_follow_the_framework(framework):
    lower = {"basicsr": "QASSIMLoss", "traiNNer": "qassimloss", "neosr": "qa_ssim_loss"}
    assert lower[framework.facts.package] in framework.LOSS_REGISTRY.keys()  # noqa: SIM118
    assert {"calculate_qa_psnr", "calculate_qa_niqe", "calculate_qa_score"} <= set(framework.METRIC_REGISTRY.keys())
    assert len(framework.DATASET_REGISTRY.keys()) == 1
    assert len(framework.names) == len(set(framework.names))


def test_registering_twice_changes_nothing(framework):
    before = {name: framework.LOSS_REGISTRY.get(name) for name in framework.LOSS_REGISTRY.keys()}  # noqa: SIM118
    model, set_epoch = model_class(framework), framework.sampler.set_epoch
    assert register(framework.facts.name) == framework.names
    assert {name: framework.LOSS_REGISTRY.get(name) for name in before} == before
    assert model_class(framework) is model
    assert framework.sampler.set_epoch is set_epoch


def test_none_takes_what_is_there(framework):
    assert set(framework.names) <= set(register())


def test_a_name_of_somebody_else_is_refused(monkeypatch):
    standin = install(monkeypatch, "basicsr")
    standin.LOSS_REGISTRY.register(type("QASSIMLoss", (), {"__module__": "theirs"}))
    with pytest.raises(ValueError, match="'QASSIMLoss' of theirs registered already"):
        register("basicsr")


def test_a_missing_framework_says_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "basicsr.utils.registry", None)
    with pytest.raises(ImportError, match=r"XPixelGroup/BasicSR.*1\.4\.2 of PyPI"):
        register("basicsr")
    with pytest.raises(ValueError, match="framework must be one of"):
        register("mmagic")


def test_the_launcher_wants_the_frameworks_folder(monkeypatch, tmp_path):
    install(monkeypatch, "neosr")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(FileNotFoundError, match=r"train.py does not exist.*neosr-project"):
        launch("neosr", ["-opt", "a.toml"])
    (tmp_path / "train.py").write_text("import sys; open('ran', 'w').write(' '.join(sys.argv))")
    launch("neosr", ["-opt", "a.toml"])
    assert (tmp_path / "ran").read_text().endswith("train.py -opt a.toml")


# ---- losses


def test_the_weight_counts_once(framework):
    output, gt = torch.rand(2, 2, 3, 24, 24)
    loss = loss_class(framework, "QA SSIM Loss")(loss_weight=0.3)
    value = loss(output, gt)
    if framework.facts.weighs:
        value = value * abs(loss.loss_weight)
    assert float(value) == pytest.approx(0.3 * float(SSIMLoss()(output, gt)), rel=1e-6)


def test_a_score_has_the_ground_truth_for_its_ceiling_and_l1_for_its_balance(framework):
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(4, 3, 32, 32, generator=generator)
    output = torch.nn.functional.avg_pool2d(gt, 3, 1, 1).requires_grad_()
    loss = loss_class(framework, "QA Score Loss")(loss_weight=2.0, scorer=SHARP, ceiling="real", balance=0.5)
    value = loss(output, gt)
    if framework.facts.weighs:
        value = value * loss.loss_weight
    (found,) = torch.autograd.grad(value, output)
    # The gradient of an L1 loss of weight 1 is sign / number of pixels; the reward's is half of it, times the weight.
    assert float(found.norm()) == pytest.approx(2.0 * 0.5 / output.numel() ** 0.5, rel=1e-3)
    assert float(loss.loss.terms["ceiling"]) == pytest.approx(float(Sharp()(gt).median()), abs=1e-6)


def test_the_perceptual_slot_gets_a_pair(framework):
    loss, style = loss_class(framework, "QA SSIM Loss")(slot="perceptual")(*torch.rand(2, 1, 3, 16, 16))
    assert loss.ndim == 0
    assert style is None


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        ("QA SSIM Loss", {"windowsize": 3}, "windowsize is not known; .* takes window_size"),
        ("QA SSIM Loss", {"weight": 3}, "is called loss_weight here"),
        ("QA SSIM Loss", {"slot": "gan"}, "slot must be one of"),
        ("QA Score Loss", {}, "needs scorer:"),
        ("QA Score Loss", {"scorer": "nonsense"}, "unknown scorer 'nonsense'"),
    ],
)
def test_wrong_loss_options_are_named(framework, words, given, message):
    with pytest.raises(ValueError, match=message):
        loss_class(framework, words)(**given)


def test_a_half_precision_output_is_scored_in_float32(framework):
    output, gt = torch.rand(2, 1, 3, 24, 24)
    loss = loss_class(framework, "QA SSIM Loss")()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(output.bfloat16(), gt).dtype == torch.float32


# ---- metrics


def test_a_metric_is_the_scorer_on_the_right_channels(framework, photographs):
    """PSNR of luma by hand: a wrong channel order would weigh red as blue."""
    image = (photographs[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    other = np.clip(image.astype(int) + np.array([12, 0, -3]), 0, 255).astype(np.uint8)
    luma = [(part[4:-4, 4:-4] @ np.array([65.481, 128.553, 24.966]) / 255 + 16) / 255 for part in (image, other)]
    expected = 10 * np.log10(1 / np.mean((luma[0] - luma[1]) ** 2))
    given = (image, other) if framework.facts.rgb_metrics else (image[..., ::-1], other[..., ::-1])
    metric = framework.METRIC_REGISTRY.get("calculate_qa_score")
    spec = {"type": "psnr", "channel": "y"}
    assert metric(img=given[0], img2=given[1], scorer=spec, crop_border=4) == pytest.approx(expected, abs=0.02)


def test_metrics_agree_with_the_frameworks_own_psnr(framework, photographs):
    skimage = pytest.importorskip("skimage.metrics")
    image = (photographs[1].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    other = np.roll(image, 1, axis=0)
    metric = framework.METRIC_REGISTRY.get("calculate_qa_psnr")
    assert metric(img=image, img2=other, device="cpu") == pytest.approx(
        skimage.peak_signal_noise_ratio(image, other), abs=1e-4
    )


def test_the_words_of_the_frameworks_for_a_channel(framework, photographs):
    """`test_y_channel` and `convert_to` are the scorers' `channel` and `color`; what is the case anyway is no error."""
    image = (photographs[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    other = np.clip(image.astype(int) + np.array([12, 0, -3]), 0, 255).astype(np.uint8)
    metrics = {name: framework.METRIC_REGISTRY.get(f"calculate_qa_{name}") for name in ("psnr", "niqe_bsd100", "score")}
    plain = metrics["psnr"](img=image, img2=other)
    on_y = metrics["score"](img=image, img2=other, scorer={"type": "psnr", "channel": "y"})
    assert metrics["psnr"](img=image, img2=other, test_y_channel=True) == on_y != plain
    for given in ({"test_y_channel": False}, {"input_order": "HWC"}):
        assert metrics["psnr"](img=image, img2=other, **given) == plain
    turned = (part.transpose(2, 0, 1) for part in (image, other))
    assert metrics["psnr"](*turned, input_order="CHW") == plain
    gray = metrics["niqe_bsd100"](img=image, better="lower")
    assert metrics["niqe_bsd100"](img=image, better="lower", convert_to="gray") == gray


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("calculate_qa_niqe_bsd100", {}, "lower is better for niqe_bsd100; say so, with better: lower"),
        ("calculate_qa_psnr", {"better": "lower"}, "higher is better for psnr"),
        ("calculate_qa_psnr", {"test_y": True}, "calculate_qa_psnr.test_y is not known; .* test_y_channel"),
        ("calculate_qa_niqe_bsd100", {"test_y_channel": True, "better": "lower"}, "test_y_channel: .* color: y_ycbcr"),
        ("calculate_qa_psnr", {"input_order": "WHC"}, "input_order must be HWC or CHW"),
        ("calculate_qa_psnr", {"convert_to": "y"}, "convert_to is 'y' or 'gray', and for niqe only"),
        ("calculate_qa_psnr", {"scorer": "ssim"}, "takes no scorer"),
        ("calculate_qa_score", {}, "needs scorer"),
        ("calculate_qa_psnr", {"crop_border": 8}, "leaves nothing"),
        ("calculate_qa_psnr", {"img2": None}, "has none"),
    ],
)
def test_wrong_metric_options_are_named(framework, name, given, message):
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        framework.METRIC_REGISTRY.get(name)(**{"img": image, "img2": image, **given})


def test_a_metric_wants_bytes():
    metric = next(m for m in framework_metrics(FRAMEWORKS["basicsr"]) if m.__name__ == "calculate_qa_psnr")
    with pytest.raises(TypeError, match="takes a uint8 image"):
        metric(img=np.zeros((8, 8, 3)), img2=np.zeros((8, 8, 3)))


# ---- data


def data_options(framework, sets, **more):
    crop = {framework.facts.crop: 16 if framework.facts.crop_is_lq else 32}
    block = {"phase": "train", "name": "tiny", "scale": 2, "dataroot_gt": str(sets), **crop, **more}
    return SimpleNamespace(batch_size_per_gpu=2, **block) if framework.facts.loss_list else block


def dataset(framework, given):
    (name,) = framework.DATASET_REGISTRY.keys()
    return framework.DATASET_REGISTRY.get(name)(given)


def test_the_data_set_gives_what_the_framework_reads(framework, sets):
    data = dataset(framework, data_options(framework, sets, qa={"strategy": "random"}))
    item = data[0]
    assert item["lq"].shape == (3, 16, 16)
    assert item["gt"].shape == (3, 32, 32)
    assert item["lq_path"] == item["gt_path"] == str(sets / "original" / "0.png")
    assert len(data) == 4
    torch.utils.data.default_collate([data[0], data[1]])


def test_the_sampler_tells_the_data_set_the_epoch(framework, sets):
    data = dataset(framework, data_options(framework, sets))
    sampler = framework.sampler(data)
    first = data[0]["gt"]
    sampler.set_epoch(3)
    assert sampler.epoch == 3
    assert not torch.equal(first, data[0]["gt"])
    sampler.set_epoch(0)
    assert torch.equal(first, data[0]["gt"])
    framework.sampler([1, 2]).set_epoch(1)  # the framework's own data sets know no epoch


def test_an_enlarged_data_set_has_new_crops(framework, sets):
    given = data_options(framework, sets, dataset_enlarge_ratio=5)
    if not framework.facts.loss_list:
        with pytest.raises(ValueError, match=r"dataset_enlarge_ratio=5 .* set datasets.train.qa.repeat: 5"):
            dataset(framework, given)
        given = data_options(framework, sets, qa={"repeat": 5})
    data = dataset(framework, given)
    assert len(data) == 20
    assert not torch.equal(data[0]["gt"], data[4]["gt"])
    if framework.facts.loss_list:
        assert given.dataset_enlarge_ratio == 1  # which the trainer reads next
        assert len(dataset(framework, data_options(framework, sets, dataset_enlarge_ratio="auto"))) == 4 * 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"qa": {"stratgy": "smp"}}, "datasets.train.qa.stratgy is not known; .* takes .*strategy"),
        ({"qa": "smp"}, "datasets.train.qa must be a mapping"),
        ({"qa": {"strategy": "smp"}}, "nobody has judged"),
        ({"qa": {"degradation": "jpeg"}}, "qa.degradation must be bicubic, hggt"),
        ({"qa": {"degradation": {"type": "hggt", "sigmas": 1}}}, "qa.degradation.sigmas is not known"),
        ({"dataroot_gt": None}, "dataroot_gt is missing"),
        ({"dataroot_gt": ["a", "b"]}, "must be one folder, got 2"),
        ({"scale": None}, "scale is missing"),
        ({"phase": "val"}, r"datasets.val wants the framework's own"),
    ],
)
def test_wrong_data_options_are_named(framework, sets, more, message):
    with pytest.raises(ValueError, match=message):
        dataset(framework, data_options(framework, sets, **more))


def test_data_draws_where_another_device_is_the_default(framework, sets):
    given = data_options(framework, sets, qa={"degradation": "hggt"})
    expected = dataset(framework, given)[1]["lq"]
    try:
        torch.set_default_device("meta")
        found = dataset(framework, given)[1]["lq"]
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


# ---- models


def test_without_a_block_the_run_is_theirs_bit_for_bit(framework, tmp_path):
    model = model_class(framework)
    ours = trained(model(options(framework, tmp_path)), batches())
    theirs = trained(model.__mro__[2](options(framework, tmp_path)), batches())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_amo_is_the_best_crop_by_brute_force(framework, tmp_path):
    model = model_class(framework)(options(framework, tmp_path, qa={"strategy": "amo", "scorer": SHARP}))
    (batch,) = batches(1, candidates=True)
    del batch["gt"]
    model.feed_data(batch)
    scores = [[float(Sharp()(c[None])) for c in row] for row in batch["candidates"]]
    best = torch.tensor(scores).argmax(1)
    assert torch.equal(model.gt, batch["candidates"][torch.arange(2), best])
    assert torch.equal(best, select_ground_truth(batch["candidates"], strategy="amo", scorer=Sharp()))
    assert "candidates" in batch  # theirs to keep


@pytest.mark.filterwarnings("ignore:.*its gradient is .* times the fidelity term's")  # a weight that the sum shows
def test_a_reward_is_added_to_the_loss_and_logged_apart(framework, tmp_path):
    given = {"scorer": SHARP, "loss_weight": 0.5, "ceiling": 0.9}
    rewarded = model_class(framework)(options(framework, tmp_path, qa={"reward": given}))
    plain = model_class(framework)(options(framework, tmp_path))
    for model in (rewarded, plain):
        trained(model, batches(1))
    label = "l_g_l1" if framework.facts.loss_list else "l_pix"
    score = float(Sharp()(plain.output.detach().clamp(0, 1)).mean())
    outside = float(((plain.output.detach() - 0.5).abs() - 0.5).relu().mean())
    share = 2 if framework.facts.loss_list else 1  # sums over the two images
    assert rewarded.log_dict[label] == pytest.approx(plain.log_dict[label], rel=1e-5)
    assert rewarded.log_dict["l_qa_reward"] == pytest.approx(share * 0.5 * (0.9 - score + outside), abs=1e-5)
    assert rewarded.log_dict["qa_score"] == pytest.approx(share * score, abs=1e-5)
    assert not torch.equal(next(rewarded.net_g.parameters()), next(plain.net_g.parameters()))


def test_the_negative_term_gets_its_images(framework, tmp_path, sets):
    model = model_class(framework)(options(framework, tmp_path, qa={"negative": {"loss_weight": 300.0}}))
    (batch,) = batches(1)
    original = batch["gt"] * 0.9
    batch |= {"original": original, "negative": torch.rand(2, 3, 32, 32), "negative_votes": torch.tensor([3, 2])}
    trained(model, [batch])
    assert model.log_dict["l_qa_negative"] < 0


def test_lora_trains_an_adapter_and_saves_a_whole_network(framework, tmp_path):
    blocks = {"lora": {"rank": 4}, "reward": {"scorer": SHARP, "ceiling": "real", "balance": 0.3, "views": 2}}
    model = model_class(framework)(options(framework, tmp_path, qa=blocks))
    base = model_class(framework)(options(framework, tmp_path)).net_g
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.net_g(x), base(x))
    trained(model, batches())
    assert all(
        torch.equal(layer.base_layer.weight, other.weight)
        for layer, other in zip(model.net_g, base, strict=True)
        if hasattr(layer, "base_layer")
    )
    model.save(0, 4)
    base.load_state_dict(torch.load(tmp_path / "net_g_4.pth", weights_only=True))  # strict
    assert torch.allclose(base(x), model.net_g(x), atol=1e-6)
    assert not torch.allclose(base(x), model_class(framework)(options(framework, tmp_path)).net_g(x), atol=1e-5)


def test_a_resumed_run_goes_on_exactly(framework, tmp_path):
    blocks = {
        "lora": {"rank": 4},
        "reward": {"scorer": SHARP, "ceiling": "real", "balance": 0.3, "views": 2},
        "penalty": {"quality": "ssim", "gp_weight": 1.0},
    }
    data = batches(6)
    model = model_class(framework)(options(framework, tmp_path, qa=blocks, network_d={}))
    trained(model, data[:3])
    model.save(0, 3)
    expected = trained(model, data[3:])
    path = {"pretrain_network_g": str(tmp_path / "net_g_3.pth"), "resume_state": str(tmp_path / "3.state")}
    resumed = model_class(framework)(options(framework, tmp_path, qa=blocks, network_d={}, path=path))
    resumed.resume_training(torch.load(tmp_path / "3.state"))
    # The stand-in saves no critic, which the generator here does not feel.
    assert all(torch.equal(a, b) for a, b in zip(trained(resumed, data[3:]), expected, strict=True))
    assert resumed.qa_penalty.run_state()["draws"] == model.qa_penalty.run_state()["draws"] > 0


def test_the_penalty_reaches_the_discriminator_alone(framework, tmp_path):
    block = {"penalty": {"quality": "ssim", "gp_weight": 5.0}}
    with_penalty = model_class(framework)(options(framework, tmp_path, qa=block, network_d={}))
    without = model_class(framework)(options(framework, tmp_path, network_d={}))
    generators = [trained(model, batches()) for model in (with_penalty, without)]
    assert all(torch.equal(a, b) for a, b in zip(*generators, strict=True))
    assert not torch.equal(with_penalty.net_d[0].weight, without.net_d[0].weight)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"rewards": {}}, "qa.rewards is not known; qa takes strategy"),
        ({"reward": {"scorer": SHARP, "cieling": 1}}, "qa.reward.cieling is not known"),
        ({"reward": {}}, "qa.reward needs scorer"),
        ({"reward": SHARP["type"]}, "qa.reward must be a mapping"),
        ({"lora": {"rnk": 4}}, "qa.lora.rnk is not known; qa.lora takes .*rank"),
        ({"strategy": "amo"}, "belong together"),
        ({"scorer": SHARP}, "belong together"),
        ({"strategy": "smp", "scorer": SHARP}, "the others are datasets.train.qa.strategy"),
        ({"penalty": {}}, "network_d and a GAN loss are missing"),
    ],
)
def test_wrong_model_options_are_named(framework, tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message):
        model_class(framework)(options(framework, tmp_path, qa=blocks))


def test_lora_and_averaged_weights_are_refused(framework, tmp_path):
    given = options(framework, tmp_path, qa={"lora": {}}, train={framework.facts.ema: 0.999})
    with pytest.raises(ValueError, match=f"remove train.{framework.facts.ema}"):
        model_class(framework)(given)


def test_candidates_without_a_strategy_are_refused(framework, tmp_path):
    (batch,) = batches(1, candidates=True)
    del batch["gt"]
    with pytest.raises(ValueError, match="strategy: amo wants qa:"):
        model_class(framework)(options(framework, tmp_path)).feed_data(batch)


def test_a_reward_needs_a_pixel_loss_beside_it(framework, tmp_path):
    if framework.facts.loss_list:
        pytest.skip("it has a list of losses")
    given = options(framework, tmp_path, qa={"reward": {"scorer": SHARP}}, train={"pixel_opt": None})
    with pytest.raises(ValueError, match="pixel_opt, which is missing"):
        model_class(framework)(given)


def test_models_that_degrade_themselves_have_no_amo(monkeypatch, tmp_path):
    standin = install(monkeypatch, "neosr")
    standin.facts = find_framework("neosr")
    register("neosr")
    with pytest.raises(ValueError, match="qa_otf makes its own low-resolution images"):
        standin.MODEL_REGISTRY.get("qa_otf")(options(standin, tmp_path, qa={"strategy": "amo", "scorer": SHARP}))
