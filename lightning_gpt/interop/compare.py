"""Whether a model of ours and the published one give the same logits."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel

_ROWS, _MOST_TOKENS = 2, 64


def published_logits(folder: Path, ids: Tensor, custom_code: bool = False) -> Tensor:
    """What transformers computes from a folder or a GGUF file, in fp32: ``(batch, time, vocab_size)``.

    Raises:
        CallError: transformers is not installed, or cannot load the folder.
    """
    model = transformers_model(folder, custom_code)
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits


def transformers_model(folder: Path, custom_code: bool = False) -> Any:
    """The model in a folder or a GGUF file, in fp32 and evaluation mode.

    Raises:
        CallError: transformers is not installed, or cannot load it.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise CallError(
            "comparing with the published model needs transformers: pip install -e '.[interop]', or skip it "
            "with --compare false"
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place = {} if folder.is_dir() else {"gguf_file": folder.name}
    try:
        with redirect_stderr(io.StringIO()):  # progress bars that no switch of transformers turns off
            model = AutoModelForCausalLM.from_pretrained(  # nosec B615
                # local_files_only: nothing is downloaded
                folder.parent if place else folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=custom_code,  # code that this package wrote, or that the user allows
                **place,
            )
        return model.eval()
    except Exception as error:  # whatever a library of many models raises
        raise CallError(f"transformers cannot load {folder}: {type(error).__name__}: {error}") from None


def some_ids(model: LanguageModel) -> Tensor:
    """Random token ids ``(batch, time)``."""
    length = min(_MOST_TOKENS, model.config.block_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (_ROWS, length), generator=generator)


def require_equal(model: LanguageModel, folder: Path, tolerance: float, custom_code: bool = False) -> str:
    """Compare the logits of random tokens; returns the result in words.

    Args:
        model: Our model, in evaluation mode.
        folder: The published one, a folder or a GGUF file.
        tolerance: The largest difference allowed, as a share of the largest logit.
        custom_code: Whether to run modelling code that the folder holds.

    Raises:
        CallError: They differ by more, or the published model cannot be computed.
    """
    ids = some_ids(model)
    theirs = published_logits(folder, ids, custom_code)
    with torch.no_grad():
        ours = model.float()(ids)
    return differ(ours, theirs, tolerance)


def differ(ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """How far the logits of two models are apart, in words.

    Args:
        ours: ``(batch, time, vocab_size)``.
        theirs: The same of the other.
        tolerance: The largest difference allowed, as a share of the largest logit.

    Raises:
        CallError: They differ by more.
    """
    if ours.shape != theirs.shape:
        raise CallError(f"the logits are {tuple(ours.shape)} here and {tuple(theirs.shape)} in transformers")
    difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    same = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    beside = f"{difference:.1e} (largest logit {largest:.3g})"
    result = f"logits differ by at most {beside}, and {same:.1%} of first choices agree"
    if not difference <= tolerance * largest:
        raise CallError(
            f"not the same model as in transformers: {result} (allowed: {tolerance:g} of the largest logit)"
        )
    return result
