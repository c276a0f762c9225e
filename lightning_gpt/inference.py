"""Text generation: a prompt in, its continuation out as it is sampled."""

from collections.abc import Iterator

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.decoding.speculative import sample_speculatively
from lightning_gpt.models.decoding.text import pieces, prompt_tokens
from lightning_gpt.models.evaluating import evaluating


def prompt_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> torch.Tensor:
    """The ids ``(time,)`` of a prompt; an empty one becomes the tokenizer's start, or else ``<|endoftext|>``.

    Raises:
        CallError: If the prompt is longer than the model's context, or has ids outside its vocabulary.
    """
    return checked_ids(model, torch.tensor(prompt_tokens(tokenizer, prompt)))


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


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    ids: torch.Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    draft: LanguageModel | None = None,
    n_guess: int = 4,
    early_exit: EarlyExit | None = None,
) -> Iterator[str]:
    """Yield the continuation of ``ids`` piece by piece, up to ``<|endoftext|>``.

    The global random state is not used, so the same seed gives the same text whatever ran before.

    Args:
        model: The model that continues the text.
        tokenizer: The tokenizer it was trained with.
        ids: The prompt, ``(time,)``, on the model's device.
        max_new_tokens: Maximum number of tokens to sample.
        sampling: How each token is chosen.
        seed: Seed of the sampling.
        draft: A smaller model for speculative decoding, which does not change the distribution of the text.
        n_guess: How many tokens the draft proposes at a time.
        early_exit: A wrapper of ``model`` that runs tokens it is sure of through its first layers only.
    """
    generator = torch.Generator(device=ids.device).manual_seed(seed)
    with evaluating(model):
        if draft is None:
            reading = Decoder(early_exit or model, ids[None], None, max_new_tokens)
            tokens = sample(reading, max_new_tokens, sampling, generator)
        else:
            tokens = sample_speculatively(model, draft, ids[None], max_new_tokens, sampling, generator, n_guess)
        yield from pieces(tokenizer, tokens)
