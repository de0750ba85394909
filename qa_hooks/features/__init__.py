"""Features of images: what GIQA's models, Frechet distances, precision and recall are computed in."""

from qa_hooks.features.extraction import Features, extract_features
from qa_hooks.features.extractor import FeatureExtractor, create_extractor

__all__ = ["FeatureExtractor", "Features", "create_extractor", "extract_features"]
