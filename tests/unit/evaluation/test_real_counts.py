"""One name is one number wherever it is measured, and each number says how many real images it is made with."""

from __future__ import annotations

import logging

import pytest
import torch

from qa_hooks.callbacks import GenerativeMonitor, Hooks
from qa_hooks.evaluation import measure
from qa_hooks.evaluation import reference as references
from qa_hooks.evaluation.checkpoints import compare_checkpoints
from qa_hooks.evaluation.reference import Reference, kept_rows, make_reference
from qa_hooks.evaluation.set_metrics import Sets, estimate_metrics
from qa_hooks.features import create_extractor
from qa_hooks.folders import compare_folders, watch_folder
from qa_hooks.functional.kid import kernel_distance
from qa_hooks.images import save_image, to_uint8
from qa_hooks.writers import Meaning, MemoryWriter

EXTRACTOR, FAKE, REAL = "random", 24, 70
KEYS = ("fd", "kid", "precision", "recall", "density", "coverage")


class Told(MemoryWriter):
    """Keeps what tags are described as."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, str] = {}

    def describe(self, tag: str, meaning: Meaning) -> None:
        self.told[tag] = str(meaning)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return to_uint8(torch.rand(REAL + FAKE, 3, 12, 12, generator=generator) * torch.rand(REAL + FAKE, 1, 1, 1))


@pytest.fixture
def folders(images, tmp_path):
    for row, image in enumerate(images):
        name = f"real/{row % 3}/{row:03d}.png" if row < REAL else f"fake/step_100/{row:03d}.png"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(image, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("most", [2048, 30])  # all 70 real images, or 30 of them
@pytest.mark.filterwarnings("ignore:.*are few")
def test_monitor_comparison_watch_and_function_have_the_same_numbers(folders, images, most, monkeypatch, caplog):
    monkeypatch.setattr(references, "FEWEST_KEPT", most)
    caplog.set_level(logging.INFO, "qa_hooks")
    real, fake = folders / "real", images[REAL:].float() / 255
    of_kid = min(REAL, most)
    used = {"fd": REAL, "kid": of_kid} | dict.fromkeys(KEYS[2:], FAKE)

    writer = Told()
    monitor = GenerativeMonitor(
        lambda n, g: fake, real, extractor=EXTRACTOR, n=FAKE, batch_size=FAKE, groups=4, every=1
    )
    Hooks([monitor], writer=writer).step()
    values = {key: monitor.last[key] for key in KEYS}

    extractor = create_extractor(EXTRACTOR)
    reference = make_reference(extractor, real, rows=kept_rows(FAKE), progress=False)
    found = measure(extractor(images[REAL:]), reference, ["fd", "kid", "pr"], extractor=extractor)
    assert {key: found[key].value for key in KEYS} == pytest.approx(values, rel=1e-5)
    assert {key: found[key].real for key in KEYS} == used
    assert all(f"real={used[key]}," in monitor.spec[key] for key in KEYS)

    compared = compare_folders(real, folders / "fake", extractor=EXTRACTOR, progress=False)
    assert {key: compared.values["fake"][found[key].name].value for key in KEYS} == pytest.approx(values, rel=1e-5)
    assert {key: compared.real_counts[found[key].name] for key in KEYS} == used
    assert compared.as_json()["real_counts"] == compared.real_counts
    for key, count in used.items():
        assert f"{found[key].name} ({'low' if key in ('fd', 'kid') else 'high'}er is better, {count} real)" in str(
            compared
        )

    lines: list[str] = []
    options = {"extractor": EXTRACTOR, "metrics": ("fd", "kid", "pr"), "once": True, "every": 0.01, "say": lines.append}
    watched = watch_folder(folders / "fake", real=real, log_dir=folders / "log", **options).steps[100]
    assert {key: watched[key] for key in KEYS} == pytest.approx(values, rel=1e-5)
    assert {key: watched[f"{key}_real"] for key in KEYS} == used
    assert f"] ({of_kid} real), precision_random" in lines[-1]

    both = compare_checkpoints(lambda n, g: fake[:n], lambda n, g: fake[:n], n=FAKE, batch_size=FAKE, real=real,
                               extractor=EXTRACTOR, metrics=("fd", "kid", "pr"))  # fmt: skip
    assert {key: both.values["A"][found[key].name].value for key in KEYS} == pytest.approx(values, rel=1e-5)

    told = writer.told[f"qa_eval/precision_random_n={FAKE}/value"]
    assert f"{FAKE} generated images against {FAKE} real ones" in told
    assert f"{FAKE} for precision_random, recall_random, density_random, coverage_random" in caplog.text


def test_a_monitor_asks_for_as_many_real_rows_as_the_rule_says():
    real, fake = torch.rand(90, 6), torch.rand(40, 6) + 0.1
    reference = Reference.of(real)
    (value,) = estimate_metrics(Sets(reference, fake), ["kid"]).values()
    assert (value.n, value.real) == (40, 90)
    assert value.value == pytest.approx(kernel_distance(real, fake).value, rel=1e-5)
    assert kept_rows(60) == 2048
    assert kept_rows(5000) == 5000


def test_kid_takes_the_first_rows_of_a_reference_with_more_than_the_rule(monkeypatch):
    monkeypatch.setattr(references, "FEWEST_KEPT", 30)
    real, fake = torch.rand(90, 6), torch.rand(40, 6) + 0.1
    (value,) = estimate_metrics(Sets(Reference.of(real), fake), ["kid"]).values()
    assert (value.n, value.real) == (40, 40)
    assert value.value == pytest.approx(kernel_distance(real[:40], fake).value, rel=1e-5)


def test_a_mean_score_says_how_many_real_images_are_beside_it(folders):
    from toy_scorers import brightness

    compared = compare_folders(folders / "real", folders / "fake", metrics=(), scorers=brightness(), progress=False)
    (name,) = compared.higher_is_better
    assert compared.real_counts == {name: FAKE}
    assert f"{FAKE} real)" in str(compared)
