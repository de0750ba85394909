"""Diffusers: samples of any pipeline for monitors and tables, and the gradient of a reward through its last steps.

sample = PipelineSampler(pipeline, prompts, batch_size=8, num_inference_steps=25)
hooks = Hooks([SampleGrid(sample, every=500), ScoreMonitor(scorer, sample=sample)], log_dir="runs/a")

with grad_last_steps(pipe, k=1):
    images = pipe(prompts, output_type="pt").images
loss = reward_loss(images)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
