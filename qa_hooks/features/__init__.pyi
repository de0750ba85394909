from .create import create_extractor as create_extractor
from .extraction import Features as Features
from .extraction import extract_features as extract_features
from .extractor import FeatureExtractor as FeatureExtractor
from .moments import Moments as Moments
from .sums import FeatureSums as FeatureSums
