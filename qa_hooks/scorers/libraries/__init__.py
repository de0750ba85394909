"""Metrics of other libraries as scorers: pyiqa, piq, torchmetrics."""
