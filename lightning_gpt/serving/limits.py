"""What one client may ask for, and how long it may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Args:
        max_tokens: The most tokens of one generated text.
        seconds: The longest that a request may take, waiting included.
        choices: The most texts of one request.
        body: The largest request, in bytes.
        transfer_seconds: The longest that a client may take to send its request, or to take a piece of the reply.
        stop: The most stop strings, and the longest of them in characters.
    """

    max_tokens: int
    seconds: float
    choices: int
    body: int = 8 * 2**20
    transfer_seconds: float = 30.0
    stop: tuple[int, int] = (16, 256)
