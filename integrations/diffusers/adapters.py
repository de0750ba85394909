"""The names of `qa_hooks.integrations.peft` that one needs to train a denoiser's adapter."""

from qa_hooks.integrations.peft.checkpoint import save_adapter_only as save_adapter_only
from qa_hooks.integrations.peft.sync import check_same_weights as check_same_weights
from qa_hooks.integrations.peft.sync import reduce_gradients as reduce_gradients
from qa_hooks.integrations.peft.sync import sync_adapter as sync_adapter
