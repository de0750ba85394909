"""Adapters for the frameworks that trainers are written in; each imports its framework inside functions."""
