"""Quality as a dial: a small adapter through which a frozen diffusion model takes target scores, and its rivals.

adapter = QualityAdapter(pipe.unet, QualityTable.load("niqe.csv"))
adapter.condition(q)                    # in the training loop, before the denoiser is called
with adapter.quality(+1.5):             # at sampling, around any call of the pipeline
    images = pipe(prompts).images
"""
