"""How benchmarks measure: interleaved runs, medians, the spread of the ratio, peak memory in a fresh process.

Two programs on a shared machine are compared fairly only when they take turns: each round runs every candidate once, a
ratio is taken within each round, and what is reported is the median of the rounds with the quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median, quantiles
from typing import NamedTuple

import torch

from qa_hooks._base.libraries import installed_version

Candidate = Callable[[], object]
OURS = "qa_hooks"


class Row(NamedTuple):
    """One piece of work, measured; times in milliseconds (or, for memory, megabytes)."""

    work: str
    ours: float
    peers: dict[str, float]
    ratio: float
    spread: tuple[float, float]
    goal: float


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all timed benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts to measure with")
    options.add_argument("--runs", type=int, default=9, help="interleaved rounds, at least 7")
    options.add_argument("--quick", action="store_true", help="7 rounds and only the smallest work")
    return options


def header(peers: list[str], threads: int) -> str:
    """What a number needs beside it: machine, versions, threads, and which peers are missing."""
    versions = {peer: installed_version(peer) for peer in peers}
    found = [f"{peer} {found}" for peer, found in versions.items() if found]
    missing = [peer for peer, found in versions.items() if not found]
    name = torch.cuda.get_device_name() if device().type == "cuda" else platform.machine()
    lines = [
        f"device {device().type} ({name}), {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}",
        f"{OURS} {installed_version('qa-hooks') or '(not installed)'} against " + (", ".join(found) or "nobody"),
    ]
    if missing:
        lines.append("skipped, not installed: " + ", ".join(missing))
    return "\n".join(lines)


def print_times(
    times: Callable[[int, bool, dict[str, str]], Iterable[Row]], options: argparse.Namespace, peers: list[str]
) -> None:
    """A table for each number of threads, with the notes that `times(runs, quick, notes)` leaves."""
    from threadpoolctl import threadpool_limits

    for threads in options.threads:
        torch.set_num_threads(threads)
        notes: dict[str, str] = {}
        with threadpool_limits(threads):
            print(header(peers, threads), end="\n\n")
            print(table(list(times(7 if options.quick else options.runs, options.quick, notes))), end="\n\n")
        print("\n".join(f"{name}: {note}" for name, note in notes.items()), end="\n\n")


def once(candidate: Candidate) -> float:
    """Wall milliseconds of one call; on CUDA, of its kernels."""
    if device().type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        candidate()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop))
    begin = time.perf_counter()
    candidate()
    return (time.perf_counter() - begin) * 1e3


def compare(
    work: str,
    candidates: dict[str, Candidate],
    *,
    goal: float,
    inexact: frozenset[str] = frozenset(),
    runs: int = 9,
    calls: int = 1,
) -> Row:
    """Measure our candidate (`OURS`) and its peers in turns.

    Args:
        work: what is done, for the table.
        candidates: name -> call.
        goal: the ratio to the fastest peer that we mean to reach.
        inexact: peers that compute something else; they are timed and do not count for the ratio.
        runs: rounds, after one that warms up.
        calls: calls per measurement, for work of microseconds.
    """
    if runs < 7:
        raise ValueError(f"runs must be at least 7, got {runs}")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, candidate in candidates.items():
            spent = sum(once(candidate) for _ in range(calls)) / calls
            if turn:
                times[name].append(spent)
    medians = {name: median(values) for name, values in times.items()}
    ours = medians.pop(OURS)
    exact = [name for name in medians if name not in inexact]
    if not exact:
        return Row(work, ours, medians, float("nan"), (float("nan"), float("nan")), goal)
    best = min(exact, key=lambda name: medians[name])
    low, ratio, high = quantiles([a / b for a, b in zip(times[OURS], times[best], strict=True)], n=4)
    return Row(work, ours, medians, ratio, (low, high), goal)


def peak_memory(module: str, name: str, *, threads: int) -> float | None:
    """Megabytes that `module.memory_work(name)` needs at its peak over what it held before, in a fresh process.

    `memory_work(name, small=...)` prepares its inputs and returns the call to measure, or None when the peer is not
    installed. On the CPU it is the process's high-water mark, so that all temporaries count; a small first call loads
    the code.
    """
    command = [sys.executable, "-c", _CHILD, module, name, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    value = json.loads(done.stdout.splitlines()[-1])
    return None if value is None else float(value)


_CHILD = """
import importlib, json, resource, sys, torch
torch.set_num_threads(int(sys.argv[3]))
work = importlib.import_module(sys.argv[1]).memory_work
warm, call = work(sys.argv[2], small=True), work(sys.argv[2], small=False)
if call is None:
    print(json.dumps(None))
    sys.exit()
warm()
if torch.cuda.is_available():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    print(json.dumps((torch.cuda.max_memory_allocated() - before) / 2**20))
else:
    # ru_maxrss is inherited from the parent on Linux and never falls: VmHWM can be reset through clear_refs.
    def status(field):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = status("VmRSS:")
        call()
        print(json.dumps(status("VmHWM:") - before))
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


def table(rows: list[Row], *, unit: str = "ms") -> str:
    """The rows as text: the ratio is to the best peer that computes the same, the spread its quartiles."""
    peers = sorted({peer for row in rows for peer in row.peers})
    lines = [["work", f"{OURS} {unit}", *(f"{peer} {unit}" for peer in peers), "ratio", "spread", "goal", ""]]
    for row in rows:
        values = [f"{row.peers[peer]:.2f}" if peer in row.peers else "-" for peer in peers]
        spread = f"{row.spread[0]:.3f}-{row.spread[1]:.3f}"
        verdict = "no peer" if math.isnan(row.ratio) else "met" if row.ratio <= row.goal else "NOT MET"
        lines.append([row.work, f"{row.ours:.2f}", *values, f"{row.ratio:.3f}", spread, f"<= {row.goal:g}", verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
