from __future__ import annotations

import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from qa_hooks.callbacks import Hooks, NaNGuard
from qa_hooks.losses import SSIMLoss
from qa_hooks.writers import (
    GROUPS,
    Meaning,
    MemoryWriter,
    TensorBoardWriter,
    WandbWriter,
    describe,
    make_tag,
    read_run_log,
)
from qa_hooks.writers.run_log import RunLog


def fill(writer) -> None:
    for step in (1, 5):
        writer.scalar("qa_loss/ssim/mean", 0.25 * step, step)
    writer.image("qa_images/samples/grid", torch.full((3, 4, 6), 200, dtype=torch.uint8), 5)
    writer.histogram("qa_eval/niqe/histogram", torch.randn(50), 5)
    writer.close()


def test_tags_are_made_in_one_place():
    assert make_tag("loss", "my loss", "a/b") == "qa_loss/my_loss/a_b"
    with pytest.raises(ValueError, match="group must be one of"):
        make_tag("other", "a", "b")
    for group in GROUPS:
        assert make_tag(group, "a", "b") == f"qa_{group}/a/b"


def test_tensorboard_files_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(TensorBoardWriter(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("qa_loss/ssim/mean")] == [(1, 0.25), (5, 1.25)]
    image = events.Images("qa_images/samples/grid")[0]
    assert (image.width, image.height, image.step) == (6, 4, 5)
    assert events.Histograms("qa_eval/niqe/histogram")[0].histogram_value.num == 50


def row_of_hparams(folder) -> tuple[dict, bool]:
    """The settings of a run's row on TensorBoard's page HPARAMS, and whether the run is said to have ended."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    assert metadata.EXPERIMENT_TAG not in content  # one run's list of columns would hide those of the others
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return found, metadata.SESSION_END_INFO_TAG in content


def test_a_run_has_a_row_of_settings_from_its_first_step_on(tmp_path):
    ssim, run = SSIMLoss(weight=0.1), tmp_path / "run"
    hooks = Hooks([NaNGuard(action="warn")], log_dir=run, track={"ssim": ssim})
    image = torch.rand(1, 3, 16, 16)
    ssim(image, image)
    hooks.step()
    hooks.state_dict()  # what was logged is on disk, as where the run is killed now
    found, ended = row_of_hparams(run)
    assert found["ssim"] == "SSIMLoss"
    assert found["ssim/weight"] == 0.1
    assert found["NaNGuard(nan)/action"] == "warn"
    assert not ended
    hooks.close()
    assert row_of_hparams(run) == (found, True)


def test_settings_that_json_cannot_hold_are_texts(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.scalar("a/b", 1.0, 1)  # before the settings are known
    writer.settings({"inf": float("inf"), "flag": True, "n": 3, "name": "x"})
    writer.close()
    assert row_of_hparams(tmp_path) == ({"inf": "inf", "flag": "True", "n": 3.0, "name": "x"}, True)


def test_a_folder_that_cannot_be_written_fails_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"log_dir=.*cannot be written"):
        TensorBoardWriter(tmp_path / "file" / "run")


def test_memory_keeps_everything():
    writer = MemoryWriter()
    fill(writer)
    assert writer.scalars == {"qa_loss/ssim/mean": [(1, 0.25), (5, 1.25)]}
    assert writer.images["qa_images/samples/grid"][0][1].shape == (3, 4, 6)


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    yield run
    run.finish()


def test_wandb_points_do_not_disturb_the_users_steps(wandb_run):
    writer = WandbWriter()
    for step in range(4):
        wandb_run.log({"mine": float(step)}, step=step)
        writer.scalar("qa_train/a/mean", 10.0 * step, step + 1)
        writer.scalar("qa_train/b/mean", 20.0 * step, step + 1)
        assert wandb_run.step == step
    writer.image("qa_images/samples/grid", torch.zeros(3, 4, 6, dtype=torch.uint8), 4)
    writer.histogram("qa_eval/niqe/histogram", torch.randn(50), 4)
    wandb_run.log({"mine": 4.0}, step=4)
    assert wandb_run.summary["mine"] == 3.0  # row 4 is still open
    assert wandb_run.summary["qa_train/a/mean"] == 30.0
    assert wandb_run.summary["qa_train/b/mean"] == 60.0
    assert wandb_run.summary["qa_step"] == 4


def test_wandb_rows_of_our_own(wandb_run):
    fill(WandbWriter(wandb_run, exclusive=True))
    assert wandb_run.step == 1  # the first of two points is complete
    assert wandb_run.summary["qa_loss/ssim/mean"] == 0.25


def test_wandb_says_when_points_are_lost(wandb_run):
    with pytest.warns(UserWarning, match="exclusive=True"):
        fill(WandbWriter(wandb_run))


def test_wandb_needs_a_run():
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="no W&B run is active"):
        WandbWriter()


def test_a_missing_wandb_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'qa-hooks\[wandb\]'"):
        WandbWriter()


def scalars(folder, tag="qa_loss/a/mean") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


class TestARunThatGoesOn:
    def test_its_first_point_hides_ours_from_there_on(self, tmp_path):
        for steps, value in ((range(1, 8), 1.0), (range(5, 11), 2.0)):
            writer = TensorBoardWriter(tmp_path)
            for step in steps:
                writer.scalar("qa_loss/a/mean", value, step)
            writer.close()
        assert scalars(tmp_path) == [(step, 1.0 if step < 5 else 2.0) for step in range(1, 11)]

    def test_the_points_of_others_are_left_alone(self, tmp_path):
        from torch.utils.tensorboard import SummaryWriter

        theirs = SummaryWriter(str(tmp_path))
        for step in range(1, 8):
            theirs.add_scalar("loss", 3.0, step)
        theirs.close()
        writer = TensorBoardWriter(tmp_path)
        writer.scalar("qa_loss/a/mean", 1.0, 1)
        writer.close()
        assert scalars(tmp_path, "loss") == [(step, 3.0) for step in range(1, 8)]

    def test_a_saved_state_puts_its_points_on_disk(self):
        class Counting(MemoryWriter):
            flushed = 0

            def flush(self):
                self.flushed += 1

        writer = Counting()
        hooks = Hooks([], writer=writer)
        hooks.state_dict()
        hooks.state_dict()
        assert writer.flushed == 2
        assert Hooks([], writer=MemoryWriter()).state_dict()["step"] == 0  # a writer need not have it


def keeps_training(hooks: Hooks, steps: int = 5, *, close: bool = True) -> list[str]:
    """Steps, saves and closes; what was warned about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            hooks.record(loss=1.0)
            hooks.step()
            hooks.state_dict()
        if close:
            hooks.close()
    return [str(warning.message) for warning in caught]


class TestWhatCannotBeWritten:
    def test_a_vanished_folder_ends_the_logging_with_one_warning(self, tmp_path):
        hooks = Hooks([], log_dir=tmp_path / "run", log_every=1)
        assert keeps_training(hooks, 2, close=False) == []
        shutil.rmtree(tmp_path / "run")
        said = keeps_training(hooks)
        assert len(said) == 1
        assert "logging is switched off for the rest of the run: FileNotFoundError: the folder" in said[0]
        assert hooks.step_count == 7
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("method", ["scalar", "flush", "close"])
    def test_a_full_disk(self, method):
        class Full(MemoryWriter):
            pass

        def fail(self, *arguments):
            raise OSError(28, "No space left on device")

        Full.flush = lambda self: None
        setattr(Full, method, fail)
        hooks = Hooks([], writer=Full(), log_every=1)
        hooks._owns_writer = True
        said = keeps_training(hooks)
        assert len(said) == 1
        assert "logging is switched off for the rest of the run: OSError: [Errno 28] No space left" in said[0]

    def test_a_real_limit_on_the_size_of_files(self, tmp_path):
        """TensorBoard writes in a thread of its own: what fails there must reach us, and nothing may hang."""
        code = (
            "import resource, sys, torch, warnings\n"
            "from qa_hooks import Hooks, SampleGrid\n"
            "noise = lambda n, g: torch.rand(n, 3, 64, 64, generator=g)\n"
            "hooks = Hooks([SampleGrid(noise, every=1)], log_dir=sys.argv[1], log_every=1)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1500000, 1500000))\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    for step in range(8):\n"
            "        hooks.record(loss=1.0)\n"
            "        hooks.step()\n"
            "        hooks.state_dict()\n"
            "    hooks.close()\n"
            "print(hooks.step_count, [str(w.message) for w in caught])\n"
        )
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        last = run.stdout.splitlines()[-1]
        assert last.startswith("8 [")
        assert last.count("logging is switched off for the rest of the run: OSError: [Errno 27] File too large") == 1
        assert last.count("', '") == 0  # nothing else was warned about


def test_values_with_bounds_are_drawn_as_bands(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    writer = TensorBoardWriter(tmp_path)
    for name in ("fd_random(n=64)", "kid"):
        for step in (1, 2):
            for part, value in (("value", 2.0), ("low", 1.0), ("high", 3.0)):
                writer.scalar(make_tag("eval", name, part), value, step)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    charts = {chart.title: chart.margin.series[0] for chart in layout.category[0].chart}
    assert list(charts) == ["qa_eval/fd_random_n=64", "qa_eval/kid"]
    series = charts["qa_eval/kid"]
    assert (series.lower, series.value, series.upper) == ("qa_zones/kid/low", "qa_eval/kid/value", "qa_zones/kid/high")
    # TensorBoard's margin chart draws nothing for a tag with one of these.
    assert not [tag for tag in events.Tags()["scalars"] if set(tag) & set("()[]{} ")]
    assert sorted(tag for tag in events.Tags()["scalars"] if tag.startswith("qa_eval/")) == [
        "qa_eval/fd_random_n=64/value",
        "qa_eval/kid/value",
    ]


def test_what_a_tag_means_is_written_once(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    writer = TensorBoardWriter(tmp_path)
    describe(writer, "qa_eval/a/mean", Meaning("mean score", better="lower"))
    for step in (1, 2):
        writer.scalar("qa_eval/a/mean", 0.5 * step, step)
        writer.scalar("qa_eval/b/mean", 1.0, step)
    writer.text("qa_hooks/settings", "**callbacks**", 1)
    writer.close()
    (file,) = tmp_path.glob("*tfevents*")
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    told = {value.tag: value.metadata.summary_description for value in values if value.metadata.summary_description}
    assert told == {"qa_eval/a/mean": "mean score; lower is better"}
    assert scalars(tmp_path, "qa_eval/a/mean") == [(1, 0.5), (2, 1.0)]
    assert scalars(tmp_path, "qa_eval/b/mean") == [(1, 1.0), (2, 1.0)]
    assert any(value.tag.startswith("qa_hooks/settings") for value in values)
    describe(MemoryWriter(), "qa_eval/a/mean", Meaning("a writer without a place for it"))


class TestTheLinesOfARun:
    def test_a_value_has_its_interval_beside_it(self, tmp_path):
        writer = TensorBoardWriter(tmp_path)
        for step in (1, 2):
            writer.scalar("qa_loss/a/mean", 0.25, step)
            for part, value in (("value", 2.0 * step), ("low", 1.0), ("high", torch.inf)):
                writer.scalar(f"qa_eval/fd/{part}", value, step)
        writer.close()
        assert read_run_log(tmp_path) == {
            "qa_loss/a/mean": [{"step": 1, "value": 0.25}, {"step": 2, "value": 0.25}],
            "qa_eval/fd/value": [{"step": n, "value": 2.0 * n, "low": 1.0, "high": None} for n in (1, 2)],
        }

    def test_a_tag_says_once_what_it_is_and_again_when_it_is_something_else(self, tmp_path):
        writer = TensorBoardWriter(tmp_path)
        meanings = [
            Meaning("a distance", "fd[ref=aa]", "lower", doubt="untrained"),
            None,
            Meaning("words", change=True),
        ]
        for step, about in enumerate(meanings, 1):
            if about is not None:
                writer.describe("qa_eval/fd/value", about)
            for part in ("value", "low", "high"):
                writer.scalar(f"qa_eval/fd/{part}", 1.0, step)
        writer.close()
        lines = read_run_log(tmp_path)["qa_eval/fd/value"]
        assert [line.get("about") for line in lines] == meanings
        assert all(line["high"] == 1.0 for line in lines)

    def test_a_run_that_goes_on_replaces_what_it_makes_again(self, tmp_path):
        for steps, value in ((range(1, 8), 1.0), (range(5, 11), 2.0)):
            log = RunLog(tmp_path)
            for step in steps:
                log.scalar("qa_loss/a/mean", value, step)
            log.flush()
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 99, "ta')  # a killed run
        found = [(line["step"], line["value"]) for line in read_run_log(tmp_path)["qa_loss/a/mean"]]
        assert found == [(step, 1.0 if step < 5 else 2.0) for step in range(1, 11)]

    def test_a_second_writer_leaves_the_first_ones_lines_alone(self, tmp_path):
        first, second = RunLog(tmp_path), RunLog(tmp_path)
        for step in range(0, 1000, 100):
            first.scalar("qa_loss/a/mean", 1.0, step)
        first.flush()
        second.scalar("qa_eval/x/value", 1.0, 0)
        second.flush()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "tag": "t", "value": "text"}\n\xff\n')
        found = read_run_log(tmp_path)
        assert {tag: len(lines) for tag, lines in found.items()} == {"qa_loss/a/mean": 10, "qa_eval/x/value": 1}

    def test_another_folder_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no metrics\.jsonl: it is no folder that Hooks"):
            read_run_log(tmp_path)


def test_hooks_that_are_closed_twice_leave_one_file(tmp_path):
    with Hooks([NaNGuard(action="warn")], log_dir=tmp_path) as hooks:
        hooks.record(loss=1.0)
        hooks.step()
        hooks.close()
    assert len(list(tmp_path.glob("events*"))) == 1
    assert row_of_hparams(tmp_path)[1]


def test_a_fresh_run_in_the_log_of_another_is_told_and_a_resumed_one_is_not(tmp_path):
    def run(state=None) -> dict:
        hooks = Hooks([], log_dir=tmp_path, log_every=1)
        if state is not None:
            hooks.load_state_dict(state)
        hooks.record(loss=1.0)
        hooks.step()
        state = hooks.state_dict()
        hooks.close()
        return state

    state = run()
    run(state)  # a warning would be an error
    with pytest.warns(UserWarning, match="metrics.jsonl holds the values of an earlier run") as told:
        run()
    assert len(told) == 1
