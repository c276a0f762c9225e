"""Text in and out of a model: the ids of a prompt, and the text of the tokens that follow it."""

import codecs
from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor


class TextCoder(Protocol):
    """What generating text needs of a tokenizer."""

    start: tuple[int, ...]
    """The ids that a prompt begins with."""
    end_of_text: int
    """The id that ends a text."""

    def encode(self, text: str) -> Iterable[int]:
        """The ids of a text."""

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token."""


def prompt_tokens(coder: TextCoder, prompt: str) -> list[int]:
    """The ids of a prompt; of an empty one the tokenizer's start, or else its end of text."""
    return [*coder.start, *(int(token) for token in coder.encode(prompt))] or [coder.end_of_text]


def pieces(coder: TextCoder, tokens: Iterable[Tensor]) -> Iterator[str]:
    """The text of ``tokens``, piece by piece, up to the end of text.

    A character whose bytes are spread over several tokens is held back until it is complete.

    Args:
        coder: The tokenizer.
        tokens: One id each.
    """
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if int(token) == coder.end_of_text:
            break
        piece = characters.decode(coder.decode_bytes(int(token)))
        if piece:
            yield piece
    rest = characters.decode(b"", final=True)
    if rest:
        yield rest
