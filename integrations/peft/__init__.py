"""LoRA for any image network, through peft: one path for plain modules and for Diffusers' UNets and transformers.

adapters = inject_lora(pipe.unet, rank=16)              # the base is frozen, and the first step changes nothing
optimizer = torch.optim.AdamW(adapters, lr=5e-4)
...
save_lora(pipe.unet, "adapter")                         # and then, anywhere: pipe.load_lora_weights("adapter")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
