"""Callbacks and the Hooks that run them."""

from qa_hooks.callbacks.callback import Callback, Context, Monitor, TrainingStopped
from qa_hooks.callbacks.gradient_model import RefreshGradientModel
from qa_hooks.callbacks.hooks import Hooks
from qa_hooks.callbacks.nan_guard import NaNGuard
from qa_hooks.callbacks.samples import SampleGrid, ScoreMonitor
from qa_hooks.callbacks.snapshots import SnapshotCollector

__all__ = [
    "Callback",
    "Context",
    "Hooks",
    "Monitor",
    "NaNGuard",
    "RefreshGradientModel",
    "SampleGrid",
    "ScoreMonitor",
    "SnapshotCollector",
    "TrainingStopped",
]
