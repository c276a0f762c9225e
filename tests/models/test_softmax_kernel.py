"""The loss by the Triton kernel, run by Triton's interpreter on the CPU where Triton is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import itertools
import torch
import torch.nn.functional as F
from lightning_gpt.models import head
from lightning_gpt.models.head import linear_cross_entropy, token_nll

head.KERNEL_DEVICES = (torch.get_default_device().type,)
TERMS = ({}, {"label_smoothing": 0.1, "z_loss": 1e-3})
for (dtype, bound), vocab_size, terms in itertools.product(
    ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)), (50, 4096, 5000), TERMS
):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 16).to(dtype).requires_grad_() for n in (7, vocab_size))
    targets = torch.randint(vocab_size, (7,))
    targets[2] = -100
    found = linear_cross_entropy(hidden, weight, targets, **terms)
    found.backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    loss = F.cross_entropy(logits, targets, label_smoothing=terms.get("label_smoothing", 0.0))
    (loss + terms.get("z_loss", 0.0) * (logits.logsumexp(-1) ** 2)[targets >= 0].mean()).backward()
    for one, other in zip((hidden, weight), exact):
        error = float((one.grad - other.grad).norm() / other.grad.norm())
        assert error < bound, (dtype, vocab_size, terms, error)
    if not terms:
        assert abs(float(found / loss) - 1) < bound
        with torch.no_grad():
            assert abs(float(token_nll(hidden, weight, targets).sum() / 6 / loss) - 1) < bound
outside = linear_cross_entropy(torch.ones(3, 8), torch.ones(5, 8, requires_grad=True), torch.tensor([1, 5, 2]))
assert torch.isnan(outside)
print("checked")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with builds of torch for CUDA")
def test_losses_and_gradients_are_those_of_the_logits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "checked\n", done.stderr[-2000:]
