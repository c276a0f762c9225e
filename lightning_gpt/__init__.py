"""A PyTorch Lightning research framework for GPT language models.

The public interface is what ``__all__`` lists::

    from lightning_gpt import load

    model = load("runs/quickstart/version_0")
    print(model.generate("The city was founded", 40, temperature=0.8))

The names are imported when they are first used, so that ``import lightning_gpt`` costs nothing.
"""

from importlib import import_module

# python -m imports this with the working folder first on the path: nothing else may be imported here
TYPE_CHECKING = False
if TYPE_CHECKING:
    from lightning_gpt.checkpoint import Checkpoint
    from lightning_gpt.data.datamodule import TextData
    from lightning_gpt.data.tokenizer import Tokenizer
    from lightning_gpt.errors import CallError, WorkError
    from lightning_gpt.loading import load
    from lightning_gpt.models import (
        GPT,
        GPTConfig,
        LanguageModel,
        MemoryGPT,
        MemoryGPTConfig,
        SingleHeadConfig,
        SingleHeadModel,
    )
    from lightning_gpt.training.module import GPTModule, SingleHeadModule

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "CallError",
    "Checkpoint",
    "GPTConfig",
    "GPTModule",
    "LanguageModel",
    "MemoryGPT",
    "MemoryGPTConfig",
    "SingleHeadConfig",
    "SingleHeadModel",
    "SingleHeadModule",
    "TextData",
    "Tokenizer",
    "WorkError",
    "load",
]

_ELSEWHERE = {
    "CallError": "errors",
    "Checkpoint": "checkpoint",
    "GPTModule": "training.module",
    "SingleHeadModule": "training.module",
    "TextData": "data.datamodule",
    "Tokenizer": "data.tokenizer",
    "WorkError": "errors",
    "load": "loading",
}
"""Where a name is if it is not in ``lightning_gpt.models``."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'lightning_gpt' has no attribute {name!r}")
    return getattr(import_module(f"lightning_gpt.{_ELSEWHERE.get(name, 'models')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
