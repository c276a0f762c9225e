"""Passes over CUDA tensors without data: mixtures of devices and dtypes fail here too, where there is no device.

Fake tensors know their device and their dtype, and raise where a device would. Autograd needs a real device, so the
forward pass is traced and the backward pass is not. It takes a build of torch for CUDA, which may run without a device:
builds for CPUs cannot index such tensors.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from lightning_gpt.models import GPTConfig, LanguageModel, head
from lightning_gpt.models.attention import formula, mask
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.models.one_pass import OnePass
from tests.models.variants import CONFIGS, SIZES

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for CUDA, not a device")
DTYPES = [None, torch.bfloat16, torch.float16]


@contextmanager
def autocast_of_cuda(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda", dtype)``, which switches itself off where there is no device."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def without_data(tensor: Tensor, mode: FakeTensorMode) -> FakeTensor:
    return FakeTensor(mode, torch.empty_like(tensor, device="meta"), torch.device("cuda:0"))


def pass_on_cuda(
    make: Callable[[], LanguageModel], dtype: torch.dtype | None = None, run: Callable[..., Any] | None = None
) -> Any:
    """Run the loss, or ``run`` with model and ids, of a model whose tensors say that they are on a CUDA device."""
    with torch.device("meta"):
        model = make()
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing where there is no device
    mode = FakeTensorMode()
    for part in model.modules():
        if isinstance(part, Experts):
            part.is_even = True  # there are no tokens to count
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(without_data(parameter, mode), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else without_data(buffer, mode)
    cast = nullcontext() if dtype is None else autocast_of_cuda(dtype)
    with mode, torch.no_grad(), cast, mock.patch.object(head, "has_triton", return_value=True):
        ids = torch.zeros(2, 24, dtype=torch.long, device="cuda")
        return model.loss(ids, ids) if run is None else run(model, ids)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_loss_of_every_variant(config: dict[str, Any], dtype: torch.dtype | None) -> None:
    fields = copy.deepcopy({**SIZES, **config})
    memory = fields.pop("memory", None)
    make = lambda: gpt_with(memory, GPTConfig(**fields))  # noqa: E731
    if make().can_be_graphed:
        assert pass_on_cuda(make, dtype).device.type == "cuda"
        return
    with suppress(DataDependentOutputException):  # it says that its work depends on the data
        pass_on_cuda(make, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_takes_the_kernel(dtype: torch.dtype | None) -> None:
    with mock.patch.object(OnePass, "__init__", autospec=True, side_effect=OnePass.__init__) as made:
        pass_on_cuda(lambda: gpt_with(None, GPTConfig(**SIZES)), dtype)
    assert made.called


def test_experts_take_grouped_products_in_bf16() -> None:
    grouped = mock.patch.object(Experts, "_grouped", autospec=True, side_effect=Experts._grouped)
    with grouped as path, suppress(DataDependentOutputException):
        pass_on_cuda(lambda: gpt_with(None, GPTConfig(**SIZES, ffn="moe")), torch.bfloat16)
    assert path.called


def test_documents_take_the_kernel_that_skips_blocks() -> None:
    called = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, scale: float | None) -> Tensor:
        called.append({q.dtype, k.dtype, v.dtype})
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    sizes = {**SIZES, "dim": 128, "position": "rotary", "qk_norm": "layer", "attention": "value_embedding"}
    with (
        mock.patch.object(formula, "compiled_flex_attention", return_value=kernel),
        mock.patch.object(mask, "document_block_mask", return_value=None),
    ):
        pass_on_cuda(
            lambda: gpt_with(None, GPTConfig(**sizes)),
            torch.bfloat16,
            lambda model, ids: model.loss(ids, ids, torch.zeros_like(ids)),
        )
    assert called == [{torch.bfloat16}] * SIZES["n_layer"]
