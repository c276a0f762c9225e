"""Training the vocabulary that a run asks for, and reporting it."""

from collections.abc import Iterator

from lightning_gpt.console import console, say
from lightning_gpt.data.tokenizer import Tokenizer


def train_vocabulary(texts: Iterator[str], size: int) -> Tokenizer:
    """A tokenizer of ``size`` tokens, or of as many as the texts yield."""
    with console.status(f"training a vocabulary of {size:,} tokens on the training documents"):
        tokenizer = Tokenizer.train(texts, size)
    say(f"vocabulary: {tokenizer.vocab_size:,} byte-level BPE tokens, trained on the training documents")
    if tokenizer.vocab_size < size:
        say(f"the text yields no more tokens than that; {size:,} were asked for")
    return tokenizer
