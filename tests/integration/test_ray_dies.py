"""A driver that is killed and a cluster that loses a machine: the same command goes on, no row is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qa_hooks import read_scores
from qa_hooks.images import save_image

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SCORE = """
import sys, time
from qa_hooks.integrations.ray import score_dataset
from qa_hooks.scorers import FunctionScorer

def slowly(images):
    time.sleep(0.5)
    return images.mean((1, 2, 3))

scorer = FunctionScorer(slowly, name="brightness", higher_is_better=True)
folder, out, address = sys.argv[1:]
done = score_dataset(folder, scorer, out, shard_size=10, address=address or None, progress=False)
print(done.images, done.shards, done.skipped)
"""
SHRINK = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

options = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
second = cluster.add_node(**options)
cluster.wait_for_nodes()
out = Path(sys.argv[-1])
work = subprocess.Popen([sys.executable, "-c", *sys.argv[1:], cluster.address], stdout=subprocess.PIPE, text=True)
while len(list(out.glob("*.parquet"))) < 2 and work.poll() is None:
    time.sleep(0.1)
cluster.remove_node(second, allow_graceful=False)
print(work.communicate()[0])
cluster.shutdown()
sys.exit(work.returncode)
"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for number in range(120):
        save_image(torch.full((3, 16, 16), number, dtype=torch.uint8), root / f"{number:03d}.png")
    return root


def assert_whole(out: Path) -> None:
    """Each image once, with its own score."""
    table = read_scores(out)
    assert table.paths == [f"{number:03d}.png" for number in range(120)]
    assert (table.columns["brightness"] * 255).round().int().tolist() == list(range(120))


def last_line(said: str) -> list[int]:
    """Images, shards and skipped shards, as SCORE prints them; Ray prints lines of its own."""
    told = [line.split() for line in said.splitlines()]
    return next([int(word) for word in words] for words in reversed(told) if len(words) == 3 and words[0].isdigit())


def test_a_driver_that_is_killed_loses_no_part(folder, tmp_path):
    out = tmp_path / "t"
    command = [sys.executable, "-c", SCORE, str(folder), str(out), ""]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(out.glob("*.parquet"))) < 2 and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ValueError, match="is not complete: its run was interrupted"):
        read_scores(out)
    again = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    images, shards, skipped = last_line(again.stdout)
    assert images == 120
    assert 2 <= skipped <= shards
    assert_whole(out)
    assert not list(out.glob("*.partial"))


def test_a_cluster_that_loses_a_machine_goes_on(folder, tmp_path):
    command = [sys.executable, "-c", SHRINK, SCORE, str(folder), str(tmp_path / "t")]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert last_line(done.stdout)[0] == 120
    assert_whole(tmp_path / "t")
