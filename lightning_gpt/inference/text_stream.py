"""Tokens to text as they are drawn, up to the end of the text or a stop string."""

import codecs
from collections.abc import Sequence

from lightning_gpt.data.tokenizer import Tokenizer


class TextStream:
    """The text of tokens that arrive one by one.

    A character whose bytes are spread over several tokens is held back until it is complete, and so is what may become
    a stop string.

    Args:
        tokenizer: The model's tokenizer.
        stop: The text ends before the first of these strings; empty ones are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.ended = False
        """Whether ``<|endoftext|>`` or a stop string has come; further tokens change nothing."""

    def add(self, token: int) -> str:
        """The text that is certain after one more token."""
        if self.ended:
            return ""
        if token == self._tokenizer.end_of_text:
            text = self.close()
            self.ended = True
            return text
        return self._certain(self._characters.decode(self._tokenizer.decode_bytes(token)))

    def close(self) -> str:
        """The rest of the text, as no token follows."""
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


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
