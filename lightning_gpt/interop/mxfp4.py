"""Weights of gpt-oss in four bits (MXFP4), as the bf16 numbers that they stand for.

32 neighbours along a matrix's inputs share a power of two; each is one of 16 numbers times that: Rouhani et al. 2023,
"Microscaling Data Formats for Deep Learning" (2310.10537), table 1. Two of them are a byte, the lower half first. Every
product is exact in bf16.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_gpt.errors import CallError

BLOCKS, SCALES = "_blocks", "_scales"
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = (*_HALF, *(-number for number in _HALF))
_BIAS = 127


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """The matrices of experts.

    Args:
        blocks: Bytes ``(experts, outputs, groups, 16)``.
        scales: Exponents plus 127, bytes ``(experts, outputs, groups)``.

    Returns:
        ``(experts, inputs, outputs)`` in bf16, with a row for each input as gpt-oss has them.
    """
    numbers = torch.tensor(_NUMBERS, dtype=torch.bfloat16)
    both = torch.stack([blocks & 0x0F, blocks >> 4], dim=-1).flatten(-2)  # (E, outputs, groups, 32)
    values = torch.ldexp(numbers[both.long()], scales[..., None].int() - _BIAS)
    return values.to(torch.bfloat16).flatten(-2).mT.contiguous()


class Dequantised(Mapping[str, Tensor]):
    """Tensors of which those in four bits are computed when they are asked for, under the names that they would have.

    Args:
        tensors: The tensors in the files.

    Raises:
        CallError: Bytes are without their scales, or of another form.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        packed = [name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)]
        for name in packed:
            if name + SCALES not in tensors:
                raise CallError(f"tensor {name + BLOCKS} has no {name + SCALES}")
        of_packed = {name + ending for name in packed for ending in (BLOCKS, SCALES)}
        self._names = dict.fromkeys([*packed, *(name for name in tensors if name not in of_packed)])

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name]
        blocks, scales = self._tensors[name + BLOCKS], self._tensors[name + SCALES]
        if {blocks.dtype, scales.dtype} != {torch.uint8} or blocks.shape != (*scales.shape, 16) or scales.ndim != 3:
            raise CallError(f"tensors {name + BLOCKS} and {name + SCALES} are not MXFP4")
        return dequantised(blocks, scales)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
