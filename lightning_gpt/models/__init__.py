"""The models, in plain torch.

Read them in this order: gpt, block, attention/multi_head, attention/formula, ffn/dense, head.
"""

from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.config import GPTConfig
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.memory.gpt import MemoryGPT, MemoryGPTConfig
from lightning_gpt.models.single_head import SingleHeadConfig, SingleHeadModel

__all__ = ["GPT", "GPTConfig", "LanguageModel", "MemoryGPT", "MemoryGPTConfig", "SingleHeadConfig", "SingleHeadModel"]
