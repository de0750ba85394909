from .batches import ScoreBatches as ScoreBatches
from .dataset import ScoredDataset as ScoredDataset
from .dataset import score_dataset as score_dataset
from .fitting import fit_dataset as fit_dataset
