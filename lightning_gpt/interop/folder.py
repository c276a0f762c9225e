"""A folder in the layout of the Hugging Face Hub: its config, its weights and its tokenizer."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gpt.checkpoint_file import read_pickled
from lightning_gpt.data.published_tokenizer import MAIN, PublishedTokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.interop.mxfp4 import Dequantised
from lightning_gpt.options import TokenId, check_option

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"


class Folder:
    """A published model in a local folder.

    Args:
        path: The folder.
        pickled: Whether weights may be read from ``pytorch_model.bin``.

    Raises:
        CallError: It is no such folder.
    """

    def __init__(self, path: Path, pickled: bool = False) -> None:
        self.path, self.pickled = path, pickled
        self.config = read_json(path / CONFIG)
        self.generation = read_json(path / GENERATION) if (path / GENERATION).is_file() else {}
        self._quantised = self._quantisation()

    def _quantisation(self) -> bool:
        """Whether weights are in the four bits of gpt-oss.

        Raises:
            CallError: They are quantised in another way.
        """
        described = self.config.get("quantization_config")
        if not described:
            return False
        method = described.get("quant_method") if isinstance(described, dict) else described
        if method != "mxfp4" or self.config.get("model_type") != "gpt_oss":
            raise CallError(
                f"{self.path / CONFIG}: the weights are quantised; only weights of floating point are read, and "
                f"gpt-oss's in mxfp4"
            )
        return True

    def weights(self) -> Mapping[str, Tensor]:
        """All tensors, each read when it is asked for.

        Raises:
            CallError: There are none, or a file is missing or damaged.
        """
        for name, pickled in ((WEIGHTS, False), (PICKLED, True)):
            files = self._files(name)
            if not files:
                continue
            if pickled and not self.pickled:
                raise CallError(
                    f"{self.path} has weights in {name} alone, a format that can hold code: allow it with --pickled "
                    f"true (no code in it is run), or convert it to safetensors"
                )
            tensors = _Pickled(files) if pickled else _Safetensors(files)
            return Dequantised(tensors) if self._quantised else tensors
        raise CallError(f"{self.path} has neither {WEIGHTS} nor {PICKLED}")

    def _files(self, name: str) -> list[Path]:
        index = self.path / f"{name}.index.json"
        if (self.path / name).is_file():
            return [self.path / name]
        if not index.is_file():
            return []
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(_is_name(shard) for shard in shards.values()):
            raise CallError(f"{index} does not say which file of this folder holds each tensor")
        return [self.path / shard for shard in sorted(set(shards.values()))]

    def tokenizer(self, vocab_size: int) -> PublishedTokenizer | None:
        """The tokenizer; None if the folder has no ``tokenizer.json``.

        Raises:
            CallError: It is of a kind that is not read, or does not fit the model's vocabulary.
        """
        if not (self.path / MAIN).is_file():
            return None
        ends = _ends(self.config)
        also_ends = [*ends[1:], *_ends(self.generation)]
        return PublishedTokenizer.from_folder(self.path, vocab_size, ends[0] if ends else None, also_ends)


class _Safetensors(Mapping[str, Tensor]):
    def __init__(self, files: list[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self._of: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
                self._of |= dict.fromkeys(opened.keys(), opened)  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                raise CallError(f"{file} does not exist") from None
            except (SafetensorError, OSError) as error:
                reason = str(error).splitlines()[0]
                raise CallError(f"{file} is truncated, or not a safetensors file ({reason})") from None

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


class _Pickled(Mapping[str, Tensor]):
    def __init__(self, files: list[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            content = read_pickled(file, "file")
            if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
                raise CallError(f"{file} holds more than tensors")
            self._tensors |= content

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _ends(config: Mapping[str, Any]) -> list[int]:
    """The ids that end a text, as a config names them: none, one or several."""
    named = config.get("eos_token_id")
    ends: list[int] = named if isinstance(named, list) else [] if named is None else [named]
    for end in ends:
        check_option("eos_token_id", end, TokenId)
    return ends


def _is_name(shard: Any) -> bool:
    return isinstance(shard, str) and Path(shard).name == shard


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object.

    Raises:
        CallError: It is missing, unreadable or something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CallError(f"{path} does not exist") from None
    except OSError as error:
        raise CallError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CallError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise CallError(f"{path} is not a JSON object")
    return content
