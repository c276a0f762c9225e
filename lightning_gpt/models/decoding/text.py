"""Text in and out of a model: the ids of a prompt, and the text of the tokens that follow it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol


class TextCoder(Protocol):
    """What generating text needs of a tokenizer."""

    start: tuple[int, ...]
    """The ids that a prompt begins with."""
    end_of_text: int
    """The id that ends a document."""
    ends: tuple[int, ...]
    """The ids that end a generated text; that of a document is among them."""

    def encode(self, text: str) -> Iterable[int]:
        """The ids of a text."""

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token."""


def prompt_tokens(coder: TextCoder, prompt: str) -> list[int]:
    """The ids of a prompt; of an empty one the tokenizer's start, or else its end of text."""
    return [*coder.start, *(int(token) for token in coder.encode(prompt))] or [coder.end_of_text]


class TextStream:
    """The text of tokens that arrive one by one.

    A character whose bytes are spread over several tokens is held back until it is complete, and so is what may become
    a stop string.

    Args:
        coder: The model's tokenizer.
        stop: The text ends before the first of these strings; empty ones are ignored.
    """

    def __init__(self, coder: TextCoder, stop: Sequence[str] = ()) -> None:
        self._coder, self._stop = coder, [text for text in stop if text]
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.ended = False
        """Whether an id that ends a text or a stop string has come; further tokens change nothing."""

    def add(self, token: int) -> str:
        """The text that is certain after one more token."""
        if self.ended:
            return ""
        if token in self._coder.ends:
            text = self.close()
            self.ended = True
            return text
        return self._certain(self._characters.decode(self._coder.decode_bytes(token)))

    def close(self) -> str:
        """The rest of the text, as no token follows; nothing is left of one that has ended."""
        if self.ended:
            return ""
        text = self._certain(self._characters.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, piece: str) -> str:
        self._held += piece
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            text, self._held, self.ended = self._held[: min(found)], "", True
            return text
        kept = max((_overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def pieces(text: TextStream, tokens: Iterable[int]) -> Iterator[str]:
    """The text of ``tokens``, piece by piece, up to its end; no token is taken after that."""
    for token in tokens:
        piece = text.add(token)
        if piece:
            yield piece
        if text.ended:
            break
    rest = text.close()
    if rest:
        yield rest


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
