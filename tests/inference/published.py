"""A small published model with random weights, a tokenizer and a chat template, and the checkpoint made of it."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_gpt.interop.convert import into_checkpoint
from lightning_gpt.interop.folder import Folder
from tests.interop.published_tokenizers import byte_level

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def publish(folder: Path, template: str | None = TEMPLATE, **changed: Any) -> Path:
    """A Llama of two layers with SmolLM2's kind of tokenizer in the layout of the Hub; returns its folder.

    Args:
        folder: The folder to make.
        template: The chat template; None for a model without.
        changed: Settings of the model's config.
    """
    words = byte_level("smollm2")
    settings = {
        "vocab_size": words.get_vocab_size(),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": words.token_to_id(SPECIAL["bos_token"]),
        "eos_token_id": words.token_to_id(SPECIAL["eos_token"]),
        **changed,
    }
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def convert(published: Path, output: Path) -> Path:
    """The checkpoint made of a published folder."""
    list(into_checkpoint(Folder(published), output, True, None))
    return output / "model.ckpt"
