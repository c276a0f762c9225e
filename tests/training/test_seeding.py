"""A micro-batch seeds the CPU's generator and its own device's, and no other.

No accelerator is needed: its module's ``manual_seed`` is replaced. What a real device then draws is not tested here.
"""

from collections.abc import Iterator

import pytest
import torch

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.mark import Mark
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.seeding import seed_generators


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The calls that seed generators of accelerators."""
    calls: list[tuple[str, int]] = []
    for kind in ("cuda", "mps", "xpu"):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(getattr(torch, kind), name):
                label = kind if name == "manual_seed" else f"{kind}, all"
                monkeypatch.setattr(
                    f"torch.{kind}.{name}", lambda seed, label=label: calls.append((label, seed)), raising=True
                )
    monkeypatch.setattr(torch, "manual_seed", lambda seed: calls.append(("everything", seed)))
    return calls


@pytest.mark.parametrize("seed", [0, 17, -(2**63), hash((1, 8, 0))])
def test_a_cpu_draws_what_manual_seed_would_have_it_draw(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(5)
    seed_generators(seed, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(("device", "expected"), [("cpu", []), ("cuda:1", [("cuda", 17)]), ("mps", [("mps", 17)])])
def test_no_other_generator_is_seeded(
    seeded: list[tuple[str, int]], device: str, expected: list[tuple[str, int]]
) -> None:
    seed_generators(17, torch.device(device))
    assert seeded == expected
    assert torch.default_generator.initial_seed() == 17


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_training_step_seeds_by_seed_rows_and_process(
    seeded: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    monkeypatch.setattr(GPTModule, "device", property(lambda self: torch.device(device)))
    module = GPTModule(n_layer=1, n_head=1, dim=8, block_size=4, vocab_size=10, dropout=0.5)
    ids = torch.zeros(2, 4, dtype=torch.long)
    losses = [
        float(module.training_step(Batch(ids=ids, targets=ids, mark=Mark({"rows": rows})), 0)) for rows in (2, 4, 2)
    ]
    assert losses[0] == losses[2] != losses[1]
    expected = [hash((5, rows, 0)) for rows in (2, 4, 2)]
    assert seeded == ([] if device == "cpu" else [("cuda", seed) for seed in expected])
    torch.default_generator.manual_seed(expected[0])
    assert float(module.model.loss(ids, ids)) == losses[0]
