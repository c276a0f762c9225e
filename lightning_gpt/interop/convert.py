"""A published folder into a checkpoint, and a checkpoint into a folder that transformers loads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor

from lightning_gpt.checkpoint import MODEL_KEY, Checkpoint
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.checkpoint_name import CONVERTED
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.interop import families  # noqa: F401  (imported to register them)
from lightning_gpt.interop.compare import require_equal
from lightning_gpt.interop.export import Exported, write_card
from lightning_gpt.interop.family import Family, family_for, family_of
from lightning_gpt.interop.floating_point import FloatingPoint
from lightning_gpt.interop.new_folder import new_folder
from lightning_gpt.interop.own_code import NAMES, OWN, OwnCode
from lightning_gpt.interop.settings import plain_config
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig

SETTINGS, TOKENIZER = "model.yaml", "tokenizer"
_GENERATION = "published_generation"  # the entry of a checkpoint with the generation_config.json that it came with
_SAMPLING = ("temperature", "top_k", "top_p")
_STATE = "model."  # what a checkpoint puts before the names of the weights


class PublishedModel(Protocol):
    """A published model somewhere."""

    path: Path
    """Where transformers finds it."""
    config: dict[str, Any]
    """The content of its ``config.json``."""
    generation: dict[str, Any]
    """The content of its ``generation_config.json``; empty if it has none."""

    def weights(self) -> Mapping[str, Tensor]:
        """Its tensors."""

    def tokenizer(self, vocab_size: int) -> Tokenizer | None:
        """Its tokenizer, for that many ids; None if it has none."""


def into_checkpoint(
    folder: PublishedModel, output: Path, tokenizer: bool, tolerance: float | None, custom_code: bool = False
) -> Iterator[str]:
    """Convert a published model; yields a line for each thing done.

    Args:
        folder: The published model.
        output: The folder to make: a checkpoint, the tokenizer, and a config for ``fit`` and ``validate``.
        tokenizer: Whether to convert the tokenizer.
        tolerance: The largest difference of logits, as a share of the largest logit; None skips the comparison.
        custom_code: Whether modelling code in the folder may be run to compare logits; nothing else needs it.

    Raises:
        CallError: The model cannot be expressed, a file is wrong, or the logits differ; nothing is left behind.
    """
    is_own = folder.config.get("model_type") == OWN
    if is_own and tolerance is not None and not custom_code:
        raise CallError(
            f"{folder.path} has modelling code of its own, which the comparison of logits would run: allow it with "
            f"--custom_code true, or skip the comparison with --compare false"
        )
    config, state, words = _parts(folder, tokenizer)
    content = _checkpoint(config, state, words, folder.generation)
    yield f"{_size(state)} read from {folder.path}"
    if tolerance is not None:
        model = Checkpoint(output / CONVERTED, content).build()
        yield require_equal(model, folder.path, tolerance, custom_code and is_own)
    with new_folder(output) as work:
        _write_checkpoint(work, content, _settings(config, output, words), words)
    if folder.generation.get("do_sample"):
        given = {name: folder.generation[name] for name in _SAMPLING if folder.generation.get(name) is not None}
        yield f"published to be sampled with {' '.join(f'--{name} {value}' for name, value in given.items())}"
    if words is None:
        yield f"no tokenizer{'' if tokenizer else ' (--tokenizer false)'}: generate takes --ids"
    yield _written(output)


def read_published(folder: PublishedModel) -> Checkpoint:
    """A published model and its tokenizer as a checkpoint that is not written down.

    Raises:
        CallError: The model cannot be expressed, or a file is wrong.
    """
    return Checkpoint(folder.path, _checkpoint(*_parts(folder, tokenizer=True), folder.generation))


def into_folder(
    checkpoint: Checkpoint,
    output: Path,
    family: str | None,
    tolerance: float | None,
    shard_size: str,
    custom_code: bool = False,
    tokenizer: bool = True,
) -> Iterator[str]:
    """Convert a checkpoint into a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load; yields lines.

    Args:
        checkpoint: The checkpoint.
        output: The folder to make.
        family: The family to express it as; the first that can if None.
        tolerance: As in :func:`into_checkpoint`.
        shard_size: The largest file of weights, as in ``5GB``.
        custom_code: Whether a model that no family expresses may go out with modelling code of its own.
        tokenizer: Whether its tokenizer goes out, too.

    Raises:
        CallError: No family expresses the model, or the logits differ; nothing is left behind.
    """
    config = checkpoint.config()
    name, expressing = _expressing(checkpoint, config, family, custom_code)
    state = checkpoint.weights()
    model = checkpoint.build(state)  # refuses weights that are not the config's
    known = checkpoint.tokenizer() if checkpoint.has_tokenizer else None
    generation = checkpoint.content.get(_GENERATION, {})
    code = expressing.code(config) if isinstance(expressing, OwnCode) else {}
    tensors, words = expressing.to_published(config, state), known if tokenizer else None
    made = Exported(expressing.published(config), tensors, words, known, generation, code)
    with new_folder(output) as work:
        made.write(work, shard_size)
        yield f"{_size(state)} written as {name} ({expressing.architecture})"
        compared = "not computed" if tolerance is None else require_equal(model, work, tolerance, bool(code))
        if tolerance is not None:
            yield compared
        steps = checkpoint.content.get("global_step", 0)  # 0 of a converted model, which was trained elsewhere
        facts = {"steps of training": f"{steps:,}"} if steps else {}
        facts["beside lightning_gpt"] = compared
        write_card(work, output.name, made, {"class_path": module_of(config), "init_args": plain_config(config)}, facts)
    yield f"written: {output}"


def merge(checkpoint: Checkpoint, output: Path) -> Iterator[str]:
    """Write a checkpoint with adapters as a plain one, for any command; yields a line.

    Args:
        checkpoint: The checkpoint of a run with ``model.lora``.
        output: The folder to make, as :func:`into_checkpoint` does.

    Raises:
        CallError: It has no adapters.
    """
    if checkpoint.lora is None:
        raise CallError(
            f"checkpoint {str(checkpoint.path)!r} has no adapters to merge: its run was not given model.lora"
        )
    words = checkpoint.tokenizer() if checkpoint.has_tokenizer else None
    config, generation = checkpoint.config(), checkpoint.content.get(_GENERATION, {})
    step = checkpoint.content.get("global_step", 0)
    content = _checkpoint(config, checkpoint.weights(), words, generation, step)
    with new_folder(output) as work:
        _write_checkpoint(work, content, _settings(config, output, words), words)
    yield _written(output)


def _write_checkpoint(folder: Path, content: dict[str, Any], settings: str, words: Tokenizer | None) -> None:
    write_checkpoint(content, folder / CONVERTED)
    if words is not None:
        words.save(folder / TOKENIZER)
    (folder / SETTINGS).write_text(settings)


def _parts(
    folder: PublishedModel, tokenizer: bool
) -> tuple[GPTConfig | SingleHeadConfig, Mapping[str, Tensor], Tokenizer | None]:
    """The config, the weights and the tokenizer of a published model, as ours.

    Raises:
        CallError: The model cannot be expressed, or a weight is not of floating point.
    """
    expressing: Any = OwnCode() if folder.config.get("model_type") == OWN else family_of(folder.config)
    config = expressing.config(folder.config)
    state = expressing.from_published(config, FloatingPoint(folder.weights()))
    return config, state, folder.tokenizer(config.vocab_size) if tokenizer else None


def _expressing(
    checkpoint: Checkpoint, config: Any, family: str | None, custom_code: bool
) -> tuple[str, Family | OwnCode]:
    """What the model of a checkpoint can be written as, and its name.

    Raises:
        CallError: Nothing that is allowed.
    """
    own = NAMES.get(type(config))
    try:
        if own != GPT.name:
            raise CallError(
                f"checkpoint {str(checkpoint.path)!r} holds a {checkpoint.model['name']}; no family has one"
            )
        return family_for(config, family)
    except CallError as error:
        if own is None or family is not None:
            raise
        if not custom_code:
            raise CallError(
                f"{error}; --custom_code true writes modelling code of its own beside the weights"
            ) from None
    return "a model with code of its own", OwnCode()


def _checkpoint(
    config: GPTConfig | SingleHeadConfig,
    state: Mapping[str, Tensor],
    words: Tokenizer | None,
    generation: Mapping[str, Any],
    step: int = 0,
) -> dict[str, Any]:
    described = {"name": NAMES[type(config)], "config": plain_config(config)}
    data = {} if words is None else {"TextData": {"tokenizer": words.state_dict()}}
    return {
        MODEL_KEY: described,
        "state_dict": {f"{_STATE}{name}": tensor for name, tensor in state.items()},
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        **data,
        **({_GENERATION: dict(generation)} if generation else {}),
    }


def _settings(config: GPTConfig | SingleHeadConfig, output: Path, words: Tokenizer | None) -> str:
    """A config for ``fit`` and ``validate``: this model, in the form of our YAML files."""
    given = plain_config(config)
    given.pop("vocab_size")  # the tokenizer's
    data = {} if words is None else {"data": {"tokenizer": str(output / TOKENIZER / words.file_name)}}
    content = {"model": {"class_path": module_of(config), "init_args": given}, **data}
    return yaml.safe_dump(content, sort_keys=False)


def _written(output: Path) -> str:
    return f"written: {output / CONVERTED}, which commands take as --checkpoint and fit as --weights"


def module_of(config: GPTConfig | SingleHeadConfig) -> str:
    """The class of a config file that trains such a model."""
    return "GPTModule" if isinstance(config, GPTConfig) else "SingleHeadModule"


def _size(state: Mapping[str, Tensor]) -> str:
    count = sum(tensor.numel() for tensor in state.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    return f"{count:,} parameters in {len(state)} tensors of {' and '.join(dtypes)}"
