"""The baseline a model must beat: a unigram model, which knows only how often each token occurs."""

import numpy as np


def unigram_loss(token_counts: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log-likelihood in nats of ``targets`` under add-one smoothed training counts.

    ``p(token) = (count + 1) / (total + vocab_size)`` (Jurafsky & Martin, *Speech and Language Processing*,
    3rd ed., section 3.6.1); ``exp`` of the result is the unigram perplexity.

    Args:
        token_counts: Number of times each id occurs in the training tokens, ``(vocab_size,)``.
        targets: The ids to predict, ``(tokens,)``.
    """
    log_p = np.log(token_counts + 1.0) - np.log(token_counts.sum() + len(token_counts))
    return float(-log_p[targets].mean())
