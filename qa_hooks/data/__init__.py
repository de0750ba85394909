"""Sets of images: tables of scores, what is chosen by them, folders compared and watched, pairs that people judged."""

from qa_hooks.data.comparing import FolderComparison, compare_folders
from qa_hooks.data.filtering import filter_scores
from qa_hooks.data.instances import SelectedInstances, select_instances
from qa_hooks.data.pairs import Pairs, read_pairs
from qa_hooks.data.picking import PickedFolder, pick_folder
from qa_hooks.data.score_table import ScoreTable, read_scores
from qa_hooks.data.scores import score_folder
from qa_hooks.data.watching import watch_folder

__all__ = [
    "FolderComparison",
    "Pairs",
    "PickedFolder",
    "ScoreTable",
    "SelectedInstances",
    "compare_folders",
    "filter_scores",
    "pick_folder",
    "read_pairs",
    "read_scores",
    "score_folder",
    "select_instances",
    "watch_folder",
]
