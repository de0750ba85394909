"""Adapters for the frameworks that trainers are written in; each imports its framework inside functions.

    accelerate      attach(accelerator, hooks, optimizer=...)
    diffusers       PipelineSampler(pipeline, prompts), sweep_guidance(pipeline, scales, scorers, ...)
                    grad_last_steps(pipeline, k=1): the gradient of a reward through it
                    RewardFinetuner(sample, reward, denoiser=...): the loss of a step, held to the base model
    lightning       lightning_callback(hooks)
    transformers    trainer_callback(hooks)
    peft            inject_lora(model, rank=16), save_lora, load_lora, merge_lora, scale_lora, without_lora(model);
                    adapter="reward" for an adapter on top of others
                    save_adapter_only(accelerator, model): save_state without the base
                    reduce_gradients(parameters), sync_adapter(optimizer): the gradient over several processes
    ray             score_dataset(source, scorers, "scores/"): data sets scored on many machines; ScoreBatches
    sr              register("basicsr" | "traiNNer" | "neosr"), launch(...): parts for their configs
    stylegan        QALoss, chosen by class name

For a closed GAN trainer see `qa_hooks.penalties.attach_penalty`; for any other, `Hooks(...).attach(optimizer)`.
"""
