"""A CLIP of a few thousand random weights in a folder, with a tokenizer of a few words: what hubs serve, in small."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "cat", "dog", "red", "photo", "of", "blue", "house")
SIDE, LENGTH = 32, 12


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", "<start>", "<end>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )
    fast.model_max_length = LENGTH
    fast.save_pretrained(folder)


def clip_config(**changes: object):
    from transformers import CLIPConfig

    text = {
        "vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": LENGTH, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "image_size": SIDE, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, **changes)


def save_clip(folder: Path, *, siglip: bool = False) -> Path:
    """Model, image processor and tokenizer, as `save_pretrained` writes them."""
    from transformers import CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if siglip:
            config = clip_config()
            text = {**config.text_config.to_dict(), "projection_size": 16, "model_type": "siglip_text_model"}
            vision = {**config.vision_config.to_dict(), "model_type": "siglip_vision_model"}
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
            processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
        else:
            model = CLIPModel(clip_config())
            processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        for parameter in model.parameters():  # larger than at the start of training, so that scores differ
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
