"""Text generation: prompts in, their continuations out."""

from lightning_gpt.inference.prompts import checked_ids, prompt_ids
from lightning_gpt.inference.streaming import stream_text

__all__ = ["checked_ids", "prompt_ids", "stream_text"]
