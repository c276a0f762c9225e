"""Text to text: prompts in, continuations out, as they are drawn."""

import codecs
from collections.abc import Iterator

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.decoding.speculative import sample_speculatively
from lightning_gpt.models.evaluating import evaluating


def prompt_ids(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> torch.Tensor:
    """The ids ``(time,)`` of a prompt that fits the model; an empty prompt is ``<|endoftext|>``, a document's start.

    Raises:
        CallError: Where the prompt is longer than the context, or has ids that the model does not know.
    """
    ids = torch.from_numpy(tokenizer.encode(prompt)).long()
    if len(ids) == 0:
        ids = torch.tensor([tokenizer.end_of_text])
    return checked_ids(model, ids)


def checked_ids(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """``ids`` ``(time,)`` as they are, where they fit the model's context and vocabulary."""
    if len(ids) > model.config.block_size:
        raise CallError(
            f"the prompt has {len(ids)} tokens and the model's context (block_size) is {model.config.block_size}: "
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
    """Yield the continuation of ``ids`` ``(time,)`` piece by piece, up to ``<|endoftext|>``.

    A ``draft`` guesses ``n_guess`` tokens at a time for ``model`` to accept or not; the text is distributed the same.
    With ``early_exit`` of the model, tokens that it is sure of run through its first layers only.

    A character whose bytes come as several tokens is held back until it is whole. The global random state is
    not touched: the same seed gives the same text whatever ran before.
    """
    generator = torch.Generator(device=ids.device).manual_seed(seed)
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    with evaluating(model):
        if draft is None:
            reading = Decoder(early_exit or model, ids[None], None, max_new_tokens)
            tokens = sample(reading, max_new_tokens, sampling, generator)
        else:
            tokens = sample_speculatively(model, draft, ids[None], max_new_tokens, sampling, generator, n_guess)
        for token in tokens:
            if int(token) == tokenizer.end_of_text:
                break
            piece = characters.decode(tokenizer.decode_bytes(int(token)))
            if piece:
                yield piece
    rest = characters.decode(b"", final=True)
    if rest:
        yield rest
