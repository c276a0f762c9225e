"""What CUDA devices are given, asked of the functions that choose: no device and no build for one is needed."""

import pytest
import torch

from lightning_gpt.models.attention.mask import FLEX_DEVICES
from lightning_gpt.models.graph import GRAPH_DEVICES
from lightning_gpt.models.head import TokensFirst, VocabularyFirst, layout_for
from lightning_gpt.models.one_pass import OnePass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cuda_has_the_kernel_of_the_loss_block_masks_and_graphs(dtype: torch.dtype) -> None:
    assert layout_for("cuda", dtype) is OnePass
    assert "cuda" in FLEX_DEVICES
    assert "cuda" in GRAPH_DEVICES


def test_other_devices_have_none_of_them() -> None:
    assert layout_for("cuda", torch.float64) is TokensFirst
    assert layout_for("mps", torch.float32) is TokensFirst
    assert layout_for("cpu", torch.float32) is VocabularyFirst
    assert not {"mps", "cpu"} & {*FLEX_DEVICES, *GRAPH_DEVICES}
