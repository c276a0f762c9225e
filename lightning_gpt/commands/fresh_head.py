"""The model of commands that are called without a checkpoint."""

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import SingleHeadConfig, SingleHeadModel

OF_WEIGHTS: dict[str, set[str]] = {"a checkpoint": set(), "no checkpoint": {"seed"}}
"""Options that such a command reads with and without a checkpoint."""


def fresh_head(seed: int) -> tuple[SingleHeadModel, Tokenizer]:
    """A one-head model in evaluation mode with random weights drawn from ``seed``, and GPT-2's vocabulary."""
    torch.manual_seed(seed)
    return SingleHeadModel(SingleHeadConfig()).eval(), Tokenizer.gpt2()
