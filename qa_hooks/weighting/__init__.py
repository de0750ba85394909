"""Per-sample weights from scores: which generated images count more in a GAN's loss.

    d_loss = loss(D(real), 1).mean() + (ohem(fake) * loss(D(fake), 0).flatten(1).mean(1)).mean()

The weights are (N,): bring the losses to that shape first, as above, since (N,) times (N, 1) is (N, N). With several
processes thresholds and means are those of the joint batch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
