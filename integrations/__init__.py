"""Adapters for the frameworks that trainers are written in; each imports its framework inside functions.

    accelerate      attach(accelerator, hooks, optimizer=...)
    diffusers       PipelineSampler(pipeline, prompts), sweep_guidance(pipeline, scales, scorers, ...)
    lightning       lightning_callback(hooks)
    transformers    trainer_callback(hooks)
    stylegan        QALoss, chosen by class name

For a closed GAN trainer see `qa_hooks.penalties.attach_penalty`; for any other, `Hooks(...).attach(optimizer)`.
"""
