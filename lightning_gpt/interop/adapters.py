"""Adapters of a checkpoint as a folder that ``peft`` puts on the published model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.interop import families  # noqa: F401  (imported to register them)
from lightning_gpt.interop.compare import differ, some_ids, transformers_model
from lightning_gpt.interop.family import Family, family_of
from lightning_gpt.interop.folder import CONFIG, read_json
from lightning_gpt.interop.new_folder import new_folder
from lightning_gpt.models import GPTConfig
from lightning_gpt.models.adapters import adapters_in
from lightning_gpt.named_tensors import differences

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def into_adapters(checkpoint: Checkpoint, base: Path, output: Path, tolerance: float | None) -> Iterator[str]:
    """Write the adapters of a checkpoint; yields a line for each thing done.

    Args:
        checkpoint: A checkpoint of a run with ``model.lora``.
        base: The folder of the published model that they are put on.
        output: The folder to make.
        tolerance: The largest difference of logits, as a share of the largest logit; None skips the comparison, which
            needs ``peft``.

    Raises:
        CallError: The checkpoint has no adapters, its model is not of the base's family and sizes, or the logits
            differ; nothing is left behind.
    """
    lora = checkpoint.lora
    if lora is None:
        raise CallError(f"checkpoint {str(checkpoint.path)!r} has no adapters: its run was not given model.lora")
    published = read_json(base / CONFIG)
    family, config = family_of(published), checkpoint.config()
    family.published(config)  # refuses a model that the family cannot express
    differing = differences(_shapes(family, config), _shapes(family, family.config(published)))
    if differing:
        raise CallError(
            f"{base} is not the model that the adapters of {str(checkpoint.path)!r} were trained on: {differing}"
        )
    tensors = dict(_published(family, checkpoint))
    modules = sorted({name.removeprefix(_PREFIX).partition(".lora_")[0] for name in tensors})
    described: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": any(each.transposes for each in family.inside.values()),
        "target_modules": modules,
        "inference_mode": True,
    }
    with new_folder(output) as work:
        _write(work, described, tensors)
        count = sum(tensor.numel() for tensor in tensors.values())
        yield f"{count:,} parameters of adapters beside {len(modules)} matrices of {base}"
        if tolerance is not None:
            ids = some_ids(model := checkpoint.build())
            with torch.no_grad(), _with_adapters(base, work) as theirs:
                yield differ(model.float()(ids), theirs(ids).logits, tolerance)
    yield f"written: {output}"


def _shapes(family: Family, config: GPTConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for entry in family.entries(config) for name, shape in entry.theirs.items()}


def _write(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    (folder / _CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def _published(family: Family, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """A and B of each published matrix: the pieces of a fused one share A and have rows of B."""
    entries = {entry.ours: entry for entry in family.entries(checkpoint.config())}
    for name, a, b in adapters_in(checkpoint.state()):
        entry = entries[name]
        rows = entry.published.split(b, entry.pieces, checkpoint.config().n_head)
        for matrix, part in zip(entry.theirs, rows, strict=True):
            stem = _PREFIX + matrix.removesuffix(".weight")
            yield f"{stem}.lora_A.weight", a.clone()
            yield f"{stem}.lora_B.weight", (part.T if entry.published.transposes else part).contiguous()


@contextmanager
def _with_adapters(base: Path, adapters: Path) -> Iterator[Any]:
    try:
        from peft import PeftModel
    except ImportError:
        raise CallError(
            "comparing adapters with those of peft needs peft: pip install -e '.[peft]', or skip it with "
            "--compare false"
        ) from None
    yield PeftModel.from_pretrained(transformers_model(base), str(adapters)).eval()
