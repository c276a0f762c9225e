"""A published folder into a checkpoint, and a checkpoint into a folder that transformers loads."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor

from lightning_gpt.checkpoint import MODEL_KEY, Checkpoint
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.interop import families  # noqa: F401  (imported to register them)
from lightning_gpt.interop.compare import require_equal
from lightning_gpt.interop.family import family_for, family_of
from lightning_gpt.interop.folder import CONFIG, WEIGHTS
from lightning_gpt.interop.tokenizers import published_files
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.registry import plain
from lightning_gpt.whole_file import sync_folder

CHECKPOINT, SETTINGS, TOKENIZER = "model.ckpt", "model.yaml", "tokenizer"
_STATE = "model."  # what a checkpoint puts before the names of the weights


class PublishedModel(Protocol):
    """A published model somewhere."""

    path: Path
    """Where transformers finds it."""
    config: dict[str, Any]
    """The content of its ``config.json``."""

    def weights(self) -> Mapping[str, Tensor]:
        """Its tensors."""

    def tokenizer(self, vocab_size: int) -> Tokenizer | None:
        """Its tokenizer, for that many ids; None if it has none."""


def into_checkpoint(folder: PublishedModel, output: Path, tokenizer: bool, tolerance: float | None) -> Iterator[str]:
    """Convert a published model; yields a line for each thing done.

    Args:
        folder: The published model.
        output: The folder to make: a checkpoint, the tokenizer, and a config for ``fit`` and ``validate``.
        tokenizer: Whether to convert the tokenizer.
        tolerance: The largest difference of logits, as a share of the largest logit; None skips the comparison.

    Raises:
        CallError: The model cannot be expressed, a file is wrong, or the logits differ; nothing is left behind.
    """
    config, state, words = _parts(folder, tokenizer)
    content = _checkpoint(config, state, words)
    yield f"{_size(state)} read from {folder.path}"
    if tolerance is not None:
        model = Checkpoint(output / CHECKPOINT, content).build()
        yield require_equal(model, folder.path, tolerance)
    with _new_folder(output) as work:
        write_checkpoint(content, work / CHECKPOINT)
        if words is not None:
            words.save(work / TOKENIZER)
        (work / SETTINGS).write_text(_settings(config, output, words))
    if words is None:
        yield f"no tokenizer{'' if tokenizer else ' (--tokenizer false)'}: generate takes --ids"
    yield f"{output / CHECKPOINT}"


def read_published(folder: PublishedModel) -> Checkpoint:
    """A published model and its tokenizer as a checkpoint that is not written down.

    Raises:
        CallError: The model cannot be expressed, or a file is wrong.
    """
    return Checkpoint(folder.path, _checkpoint(*_parts(folder, tokenizer=True)))


def into_folder(checkpoint: Checkpoint, output: Path, family: str | None, tolerance: float | None) -> Iterator[str]:
    """Convert a checkpoint into a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load; yields lines.

    Args:
        checkpoint: The checkpoint.
        output: The folder to make.
        family: The family to express it as; the first that can if None.
        tolerance: As in :func:`into_checkpoint`.

    Raises:
        CallError: No family expresses the model, or the logits differ; nothing is left behind.
    """
    config = checkpoint.config()
    if checkpoint.model["name"] != GPT.name:
        raise CallError(f"checkpoint {str(checkpoint.path)!r} holds a {checkpoint.model['name']}; no family has one")
    name, expressing = family_for(config, family)
    weights = checkpoint.content["state_dict"]
    state = {key.removeprefix(_STATE): value for key, value in weights.items() if key.startswith(_STATE)}
    model = checkpoint.build()  # refuses weights that are not the config's
    words = checkpoint.tokenizer() if "TextData" in checkpoint.content else None
    with _new_folder(output) as work:
        _write_published(work, expressing.published(config), expressing.to_published(config, state), words)
        yield f"{_size(state)} written as {name} ({expressing.architecture})"
        if tolerance is not None:
            yield require_equal(model, work, tolerance)
    yield f"{output}"


def _write_published(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], words: Tokenizer | None
) -> None:
    from safetensors.torch import save_file

    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = str(max(dtypes, key=lambda each: each.itemsize)).removeprefix("torch.")
    ends = {  # written where there are none, too, as transformers would put its own
        "bos_token_id": None if words is None else next(iter(words.start), None),
        "eos_token_id": None if words is None else words.end_of_text,
        "pad_token_id": None,
    }
    described = {**config, **ends, "dtype": dtype, "torch_dtype": dtype}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    if words is not None:
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
        for name, text in published_files(words).items():
            (folder / name).write_text(text, "utf-8")


def _parts(folder: PublishedModel, tokenizer: bool) -> tuple[GPTConfig, Mapping[str, Tensor], Tokenizer | None]:
    family = family_of(folder.config)
    config = family.config(folder.config)
    weights = family.from_published(config, folder.weights())
    return config, weights, folder.tokenizer(config.vocab_size) if tokenizer else None


def _checkpoint(config: GPTConfig, state: Mapping[str, Tensor], words: Tokenizer | None) -> dict[str, Any]:
    described = {"name": GPT.name, "config": plain({each.name: getattr(config, each.name) for each in fields(config)})}
    data = {} if words is None else {"TextData": {"tokenizer": words.state_dict()}}
    return {
        MODEL_KEY: described,
        "state_dict": {f"{_STATE}{name}": tensor for name, tensor in state.items()},
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.6.0",
        **data,
    }


def _settings(config: GPTConfig, output: Path, words: Tokenizer | None) -> str:
    """A config for ``fit`` and ``validate``: this model, in the form of our YAML files."""
    given = {each.name: plain(getattr(config, each.name)) for each in fields(config)}
    given.pop("vocab_size")  # the tokenizer's
    data = {} if words is None else {"data": {"tokenizer": str(output / TOKENIZER / words.file_name)}}
    content = {"model": {"class_path": "GPTModule", "init_args": given}, **data}
    return yaml.safe_dump(content, sort_keys=False)


def _size(state: Mapping[str, Tensor]) -> str:
    count = sum(tensor.numel() for tensor in state.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    return f"{count:,} parameters in {len(state)} tensors of {' and '.join(dtypes)}"


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder that gets the name ``output`` if the context ends well, and is removed if not.

    Raises:
        CallError: There is something of this name.
        WorkError: It cannot be written.
    """
    if output.exists():
        raise CallError(f"{output} exists; choose another output, or delete it")
    work = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        yield work
        work.replace(output)
        sync_folder(output.parent)
    except OSError as error:
        raise WorkError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
