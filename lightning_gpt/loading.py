"""A trained model by its path, with the tokenizer it was trained with."""

import os
from pathlib import Path

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.interop.convert import PublishedModel, read_published
from lightning_gpt.interop.folder import CONFIG, Folder
from lightning_gpt.interop.gguf_file import GgufFile
from lightning_gpt.models import LanguageModel


def load(path: str | Path, step: int | None = None) -> LanguageModel:
    """A trained model in evaluation mode on the CPU; ``model.tokenizer`` is its tokenizer, None if it came without.

    Args:
        path: A checkpoint (a file or a folder), such as ``runs/quickstart/version_0/checkpoints/best.ckpt``; a run,
            such as ``runs/quickstart/version_0``, for its ``last.ckpt``; or a published model: a folder in Hugging
            Face's layout, or a ``.gguf`` file.
        step: A step of the run's series (``--checkpoints.series log``) instead.

    Raises:
        CallError: It is missing, unreadable, truncated, corrupt or none of these, or the run has no such step.
    """
    published = _published(Path(path))
    if published is not None and step is not None:
        raise CallError(f"step is {step}, but {str(path)!r} is a published model, which has no series")
    checkpoint = Checkpoint.of_step(path, step) if published is None else read_published(published)
    model = checkpoint.build()
    model.tokenizer = checkpoint.tokenizer() if checkpoint.has_tokenizer else None
    return model


def _published(path: Path) -> PublishedModel | None:
    if path.suffix == ".gguf":
        return GgufFile(path)
    return Folder(path) if os.path.isfile(path / CONFIG) else None  # False also where that cannot be known
