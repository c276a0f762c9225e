"""Forward and backward passes of a single attention layer."""

from collections.abc import Callable

import torch

from benchmarks.rounds import seconds
from benchmarks.workload import Spec
from lightning_gpt.models import GPT, GPTConfig


def attention_work(spec: Spec, length: int) -> Callable[[], None]:
    """A forward and backward pass of the attention in ``spec.options`` over one sequence of ``length`` tokens."""
    work = spec.workload
    config = GPTConfig(n_layer=1, n_head=work.n_head, dim=work.dim, vocab_size=2, position="none", **spec.options)
    with torch.device(spec.device):
        attention = GPT(config).get_submodule("blocks.0.attention")
        x = torch.randn(1, length, work.dim, requires_grad=True)

    def run() -> None:
        attention(x).sum().backward()
        attention.zero_grad()
        x.grad = None

    return run


def attention_seconds(spec: Spec, length: int) -> Callable[[], float]:
    """Measures that pass, in seconds."""
    run = attention_work(spec, length)
    return lambda: seconds(run, torch.device(spec.device))
