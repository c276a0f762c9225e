"""One text to be generated, and what comes of it."""

from dataclasses import dataclass, field
from typing import Literal

from lightning_gpt.inference.batch import TextRequest, TokenLogProbability

Failure = Literal["timeout", "stopped", "failed"]
"""Why a text was cut off: its time was over, the server stopped, or the model failed."""


@dataclass(frozen=True)
class TextPiece:
    """What further tokens have added to a text.

    Args:
        text: New text; empty while a character or a stop string may be incomplete.
        tokens: Number of tokens drawn, the one that ended the text included.
        log_probs: Those of the tokens of the text, if they were asked for; none of a stop string's.
        finish: Why the text is complete, in its last piece: something ended it, or it is as long as it may be.
        failure: Why it was cut off, in the last piece of such a text.
    """

    text: str = ""
    tokens: int = 0
    log_probs: tuple[TokenLogProbability, ...] = ()
    finish: Literal["stop", "length"] | None = None
    failure: Failure | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing more comes."""
        return self.finish is not None or self.failure is not None

    def __add__(self, later: "TextPiece") -> "TextPiece":
        return TextPiece(
            self.text + later.text,
            self.tokens + later.tokens,
            self.log_probs + later.log_probs,
            later.finish,
            later.failure,
        )


@dataclass(eq=False)
class TextTask:
    """A text to be generated.

    Args:
        request: The prompt, and how it is continued.
        seconds: The longest that it may take, from being submitted; waiting counts.
        alike: Tasks with the same prompt, which is read once for as many of them as find a slot.
    """

    request: TextRequest
    seconds: float = float("inf")
    alike: list["TextTask"] = field(default_factory=list)
    cancelled: bool = False
    """Set by the engine's ``cancel``: nothing more is delivered."""
