"""A PyTorch Lightning research framework for GPT language models.

The names below are imported when they are first used, so that ``import lightning_gpt`` costs nothing.
"""

from importlib import import_module

# python -m imports this with the working folder first on the path: nothing else may be imported here
TYPE_CHECKING = False
if TYPE_CHECKING:
    from lightning_gpt.checkpoint import load
    from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "SingleHeadConfig", "SingleHeadModel", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'lightning_gpt' has no attribute {name!r}")
    return getattr(import_module("lightning_gpt.checkpoint" if name == "load" else "lightning_gpt.models"), name)
