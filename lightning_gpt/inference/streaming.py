"""A prompt in, its continuation out as it is sampled."""

from collections.abc import Iterator, Sequence

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.samplers import sample_text
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.speculative import sample_speculatively
from lightning_gpt.models.decoding.text import TextStream, pieces
from lightning_gpt.models.evaluating import evaluating


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
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the continuation of ``ids`` piece by piece, up to ``<|endoftext|>`` or a stop string.

    A character whose bytes are spread over several tokens is held back until it is complete. The global random state
    is not used, so the same seed gives the same text whatever ran before.

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
        stop: The text ends before the first of these strings.
    """
    with evaluating(model):
        tokens: Iterator[int]
        if draft is None:
            tokens = sample_text(early_exit or model, ids, max_new_tokens, sampling, seed)
        else:
            generator = torch.Generator(device=ids.device).manual_seed(seed)
            drawn = sample_speculatively(model, draft, ids[None], max_new_tokens, sampling, generator, n_guess)
            tokens = (int(token) for token in drawn)
        yield from pieces(TextStream(tokenizer, stop), tokens)
