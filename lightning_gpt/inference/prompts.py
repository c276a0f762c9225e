"""Prompts as token ids that a model can read."""

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.text import prompt_tokens


def prompt_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> torch.Tensor:
    """The ids ``(time,)`` of a prompt; an empty one becomes the tokenizer's start, or else ``<|endoftext|>``.

    Raises:
        CallError: If the prompt is longer than the model's context, or has ids outside its vocabulary.
    """
    return checked_ids(model, torch.tensor(prompt_tokens(tokenizer, prompt)))


def require_utf8(name: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot hold: bytes typed in another encoding, or half a character named by an escape.

    Raises:
        CallError: Names the character, counted from 1.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CallError(f"{name} is not UTF-8 text (character {error.start + 1:,})") from None


def checked_ids(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Return ``ids`` ``(time,)`` if they fit the model's context and vocabulary.

    Raises:
        CallError: If they do not.
    """
    if len(ids) > model.config.block_size:
        raise CallError(
            f"the prompt has {len(ids)} tokens but the model's context (block_size) is {model.config.block_size}: "
            f"shorten the prompt"
        )
    model.require_ids(ids[None])
    return ids
