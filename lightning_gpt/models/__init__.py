"""The models, in plain torch. Read them in this order: attention, feedforward, block, single_head, gpt, base."""

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.gpt import GPT, GPTConfig
from lightning_gpt.models.single_head import SingleHeadConfig, SingleHeadModel

__all__ = ["GPT", "GPTConfig", "LanguageModel", "SingleHeadConfig", "SingleHeadModel"]
