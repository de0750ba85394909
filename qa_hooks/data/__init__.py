"""Sets of images: tables of scores that grow as they are made, what is chosen by them, and pairs that people judged."""

from qa_hooks.data.filtering import filter_scores
from qa_hooks.data.instances import SelectedInstances, select_instances
from qa_hooks.data.pairs import Pairs, read_pairs
from qa_hooks.data.picking import PickedFolder, pick_folder
from qa_hooks.data.score_table import ScoreTable, read_scores
from qa_hooks.data.scores import score_folder

__all__ = [
    "Pairs",
    "PickedFolder",
    "ScoreTable",
    "SelectedInstances",
    "filter_scores",
    "pick_folder",
    "read_pairs",
    "read_scores",
    "score_folder",
    "select_instances",
]
