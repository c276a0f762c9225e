"""A folder in the layout of the Hugging Face Hub: config, weights, tokenizer, generation config and model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.interop.folder import CONFIG, GENERATION, WEIGHTS
from lightning_gpt.interop.tokenizers import published_files
from lightning_gpt.options import shown

CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What goes into a folder.

    Args:
        config: The content of ``config.json`` without what follows from the other arguments.
        tensors: The weights by their published names.
        words: The tokenizer that goes out; None if there is none.
        known: The model's tokenizer, whose ids the configs name; None if there is none.
        generation: The published ``generation_config.json`` that the model came with; empty if there was none.
        code: The files of modelling code by their names, for a model that transformers has no class for.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    words: Tokenizer | None
    known: Tokenizer | None
    generation: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The precision of the weights, the widest if there are several."""
        widest = max((tensor.dtype for tensor in self.tensors.values()), key=lambda each: each.itemsize)
        return str(widest).removeprefix("torch.")

    def write(self, folder: Path, shard_size: str) -> None:
        """Write everything but the card.

        Args:
            folder: An existing folder.
            shard_size: The largest file of weights, as in ``5GB``; larger models become several with an index.

        Raises:
            CallError: That is no size.
        """
        ends = {  # written where there are none, too, as transformers would put its own
            "bos_token_id": None if self.known is None else next(iter(self.known.start), None),
            "eos_token_id": None if self.known is None else _one_or_all(self.known.ends),
            "pad_token_id": None,
        }
        described = {**self.config, **ends, "dtype": self.dtype, "torch_dtype": self.dtype}
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        if self.generation or self.known is not None:
            (folder / GENERATION).write_text(json.dumps({**ends, **self.generation}, indent=2) + "\n")
        write_weights(self.tensors, folder, shard_size)
        files = {} if self.words is None else published_files(self.words)
        for name, text in {**files, **self.code}.items():
            (folder / name).write_text(text, "utf-8")


def _one_or_all(ends: Sequence[int]) -> int | list[int]:
    """Ids as a config names them: a number for one, a list for several."""
    return ends[0] if len(ends) == 1 else list(ends)


def write_weights(tensors: Mapping[str, Tensor], folder: Path, shard_size: str) -> None:
    """Write weights as safetensors, in shards of at most that size and their index if one file is too small.

    Raises:
        CallError: ``shard_size`` is no size.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    try:
        plan = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=WEIGHTS.replace(".", "{suffix}."), max_shard_size=shard_size
        )
    except (ValueError, OverflowError):
        raise CallError(f"shard_size is {shown(shard_size)}; it must be a size like 5GB, 500MB or 20KB") from None
    for name, held in plan.filename_to_tensors.items():
        save_file({key: tensors[key] for key in held}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_card(folder: Path, name: str, exported: Exported, ours: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Write a model card with what is known.

    Args:
        folder: The folder.
        name: The model's name.
        exported: What was written.
        ours: The model's section of a config file.
        facts: Further lines of its table.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["lightning-gpt"])
    (architecture,) = exported.config["architectures"]
    count = sum(tensor.numel() for tensor in exported.tensors.values())
    known = {
        "class": f"`{architecture}`" + (", whose code is in this folder" if exported.code else ""),
        "parameters": f"{count:,}, {exported.dtype}",
        **facts,
        "tokenizer": "none" if exported.words is None else f"{exported.words.vocab_size:,} ids",
    }
    trust = ", trust_remote_code=True" if exported.code else ""
    use = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    use.append(f'model = AutoModelForCausalLM.from_pretrained("{name}"{trust})')
    if exported.words is not None:
        use.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}")')
    lines = [
        *("---", data.to_yaml(), "---", "", f"# {name}", "", "| | |", "| --- | --- |"),
        *(f"| {key} | {value} |" for key, value in known.items()),
        *("", "```python", *use, "```", ""),
        "Training data, licence, intended use and evaluation are not recorded in a checkpoint. Write them here before",
        "you publish the model.",
        *("", "The model as a config of lightning_gpt:", "", "```yaml"),
        yaml.safe_dump({"model": dict(ours)}, sort_keys=False).rstrip(),
        *("```", ""),
    ]
    ModelCard("\n".join(lines)).save(folder / CARD)
