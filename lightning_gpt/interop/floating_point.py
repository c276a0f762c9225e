"""The one kind of numbers that published weights may have here."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_gpt.errors import CallError

_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class FloatingPoint(Mapping[str, Tensor]):
    """Tensors that are refused when they are read, unless they are of floating point with 16 bits or more.

    Whole numbers and floats of eight bits are quantised weights, which mean nothing without their scales. Buffers that
    no layer here reads, such as GPT-2's masks, may be of any type.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tensor.dtype not in _TYPES:
            raise CallError(
                f"tensor {name} is {str(tensor.dtype).removeprefix('torch.')}; quantised weights are not read"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
