"""Tiny random Diffusers pipelines of every family: nothing is downloaded, conditions are embeddings, not texts."""
