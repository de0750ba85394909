"""Scores of a hundred million images: on a Ray cluster, in `datasets.map`, in a DataLoader.

score_dataset("laion/", "niqe_bsd100", "scores/", address="auto")      # folders, Parquet files, tars of webdataset
dataset.map_batches(ScoreBatches, fn_constructor_args=("niqe_bsd100",), batch_size=256, concurrency=8)
dataset.map(ScoreBatches("niqe_bsd100"), batched=True)                 # of the `datasets` library

`ScoreBatches` needs no Ray. Ray hands Python objects from process to process as pickles; everything that is written to
a file is Parquet or JSON.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
