"""Measurement beside the training: samples are drawn in the step, and their numbers are computed elsewhere."""
