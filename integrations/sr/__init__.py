"""Super-resolution frameworks: BasicSR, traiNNer-redux and neosr, with the package's parts under their own registries.

A launcher of two lines in the framework's folder, started as its `train.py` is:

    from qa_hooks.integrations.sr import launch
    launch("traiNNer")                       # or "basicsr", "neosr"

or none: `python -m qa_hooks.integrations.sr traiNNer -opt train.yml` there (torchrun takes `-m` as well). After that
the config may name

    losses      QASSIMLoss, QAMSSSIMLoss, QASSIMDistanceLoss, QAScoreLoss     `losses`; in neosr qa_ssim_loss, ...
    metrics     calculate_qa_niqe, calculate_qa_lpips, ..., calculate_qa_score with scorer: pyiqa:musiq     `metrics`
    data set    QAMultiGTDataset (neosr: qa_multi_gt), options under qa:                                    `data`
    models      QASRModel, QASRGANModel, ... (neosr: qa_image, qa_otf), options under qa:                   `model`

traiNNer-redux chooses its model itself: there a `qa:` block is all it takes. What each option means is in those modules
and in docs/sr_frameworks.md, with whole configs. Registering changes nothing in a run whose config names none of these.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
