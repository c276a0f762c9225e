"""``lightning-gpt generate``: continue a prompt from a checkpoint."""

import sys
from typing import Literal

import torch

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.console import say
from lightning_gpt.errors import CallError
from lightning_gpt.inference import checked_ids, prompt_ids, stream_text
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.models.decoding.sampling import NewTokens, Sampling
from lightning_gpt.models.decoding.speculative import Guesses
from lightning_gpt.options import NotNegative, Seed, ShareAboveZero, TokenId, VocabSize


def generate(
    checkpoint: str,
    prompt: str = "",
    ids: list[TokenId] | None = None,
    max_new_tokens: NewTokens = 100,
    strategy: Literal["multinomial", "greedy"] = "multinomial",
    temperature: NotNegative = 0.8,
    top_k: VocabSize | None = None,
    top_p: ShareAboveZero | None = None,
    seed: Seed = 0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    draft: str | None = None,
    n_guess: Guesses = 4,
    exit_confidence: ShareAboveZero | None = None,
) -> None:
    """Continue a prompt; text streams to standard output until <|endoftext|> or max_new_tokens.

    Args:
        checkpoint: A checkpoint written by fit, such as runs/quickstart/version_0/checkpoints/last.ckpt.
        prompt: Text to continue; if empty, the model starts a new document.
        ids: Token ids to continue instead of a prompt.
        max_new_tokens: Maximum number of tokens to generate.
        strategy: multinomial samples each token from the model's distribution; greedy takes the most likely one.
        temperature: Divides the logits before sampling: below 1 sharpens the distribution, above 1 flattens it.
        top_k: Sample only from the k most likely tokens.
        top_p: Sample only from the smallest set of tokens whose total probability reaches p.
        seed: Seed for sampling; the same seed gives the same text.
        precision: Precision of the weights: fp32 as trained; bf16 and int8 (by row) are faster and change the
            probabilities slightly.
        draft: Checkpoint of a smaller model with the same tokenizer, for speculative decoding; the probabilities stay
            the same.
        n_guess: Number of tokens the draft guesses at a time.
        exit_confidence: Skip the remaining layers once the most likely token leads the second by this probability; the
            average number of layers is reported.
    """
    sampling = Sampling(temperature=0.0 if strategy == "greedy" else temperature, top_k=top_k, top_p=top_p)
    read = Checkpoint.read(checkpoint)
    model, tokenizer = _rounded(read.build(), precision), read.tokenizer()
    drafting = None if draft is None else _rounded(Checkpoint.read(draft).build(), precision)
    early_exit = None if exit_confidence is None else _exiting(model, exit_confidence, draft)
    start = prompt_ids(model, tokenizer, prompt) if ids is None else checked_ids(model, torch.tensor(ids))
    sys.stdout.write(prompt if ids is None else tokenizer.decode(ids))
    for piece in stream_text(model, tokenizer, start, max_new_tokens, sampling, seed, drafting, n_guess, early_exit):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if early_exit is not None:
        say(f"early exit: {early_exit.layers_per_token:.2f} of {early_exit.config.n_layer} layers per token on average")


def _exiting(model: LanguageModel, confidence: float, draft: str | None) -> EarlyExit:
    """The model with early exit."""
    if draft is not None:
        raise CallError("exit_confidence and draft cannot be combined")
    if not isinstance(model, GPT):
        raise CallError(f"exit_confidence needs a GPT; this is a {type(model).__name__}")
    return EarlyExit(model, confidence)


def _rounded(model: LanguageModel, precision: str) -> LanguageModel:
    """The model with its weights converted to ``precision``."""
    if precision == "int8":
        return int8(model)
    return model.to(torch.bfloat16) if precision == "bf16" else model


def run(args: list[str]) -> None:
    """Parse ``args`` and generate text."""
    generate(**parse_function_call(generate, "generate", args))
