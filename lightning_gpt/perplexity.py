"""The perplexity of a loss."""

import math


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a mean loss in nats a token; infinite where no float can hold it, as of a run that diverged."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
