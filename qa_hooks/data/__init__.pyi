from .candidates import CandidateSet as CandidateSet
from .candidates import list_candidates as list_candidates
from .ground_truth import select_ground_truth as select_ground_truth
from .ground_truth import selection_probabilities as selection_probabilities
from .multi_gt import MultiGTDataset as MultiGTDataset
from .quality_sampler import QualitySampler as QualitySampler
from .quality_table import QualityTable as QualityTable
from .weights import quality_weights as quality_weights
