"""A training step of a mixture of experts compared with the dense model that has the same active parameters.

    python -m benchmarks.moe

Prints one line per mixture: the ratio of the two times over interleaved rounds in one process, on one thread, in
processor seconds, which other work on the machine affects less than wall time. Nothing passes or fails.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rounds import interleaved, ratio
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.planning.flops import active_parameters
from lightning_gpt.training.optim import adamw

ROUNDS = 7
SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 4, "dim": 256, "block_size": 256}
ROWS = 4
MIXTURES: list[dict[str, Any]] = [
    {"n_expert": 8, "top_k": 2},
    {"n_expert": 8, "top_k": 2, "expert": "swiglu"},
    {"n_expert": 16, "top_k": 2, "n_shared": 1, "router": "sigmoid", "balance": "bias"},
    {"n_expert": 8, "top_k": 2, "capacity_factor": 1.25},
]


def step_of(model: GPT, ids: torch.Tensor) -> Callable[[], float]:
    """A function that takes one training step and returns its processor seconds."""
    optimizer = adamw(model)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.process_time() - start

    return step


def compare(options: dict[str, Any], vocab_size: int) -> None:
    """Print the ratio for one mixture."""
    ids = torch.randint(vocab_size, (ROWS, SIZES["block_size"] + 1))
    dense = GPT(GPTConfig(**SIZES, vocab_size=vocab_size, ffn=options.get("expert", "gelu")))
    sparse = GPT(GPTConfig(**SIZES, vocab_size=vocab_size, ffn={"kind": "moe", **options}))
    dense_step, sparse_step = step_of(dense, ids), step_of(sparse, ids)
    costs = interleaved({"dense": dense_step, "sparse": sparse_step}, ROUNDS)
    found = ratio(costs["sparse"], costs["dense"])
    total = sum(parameter.numel() for parameter in sparse.parameters())
    print(
        f"{', '.join(f'{name} {value}' for name, value in options.items())}; vocabulary {vocab_size:,}: "
        f"{found.median:.2f} x the dense step ({ROUNDS} rounds: {found.least:.2f} to {found.most:.2f}); "
        f"{active_parameters(sparse):,} of {total:,} parameters active, dense {active_parameters(dense):,}",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for mixture in MIXTURES:
        compare(mixture, vocab_size=4096)
    compare(MIXTURES[0], vocab_size=50257)
