"""The cost per token of the speed run's recipe relative to the plain one, each with its config's batch and optimizer.

    python -m benchmarks.speedrun

Alternates training steps of the two in one process, on random tokens under bf16 autocast, and prints the ratio of
their times per token: median, minimum and maximum over the rounds. Nothing passes or fails.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.rounds import interleaved, ratio
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.muon import MuonOptions
from lightning_gpt.training.optim import Optimization, optimizer

CONFIGS = Path(__file__).parent.parent / "configs"
VOCABULARY = 4096


def step_of(name: str, batch_size: int | None = None, **changed: Any) -> Callable[[], float]:
    """A training step of configs/NAME.yaml with some model fields ``changed``; returns its seconds per token."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    parts: dict[str, Any] = config["model"]["init_args"]
    options: dict[str, Any] = parts.pop("optimization")
    muon, betas = MuonOptions(**options.pop("muon", {})), tuple(options.pop("betas"))
    optimization = Optimization(muon=muon, betas=betas, **options)
    model = GPT(GPTConfig(**parts | changed, vocab_size=VOCABULARY))
    chosen = optimizer(model, optimization, dtype=torch.bfloat16)
    ids = torch.randint(VOCABULARY, (batch_size or config["data"]["batch_size"], parts["block_size"] + 1))

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        chosen.zero_grad()
        return (time.perf_counter() - start) / (ids.numel() - len(ids))

    return step


def main() -> None:
    """Parse the flags, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--batch_size", type=int, default=None, help="batch size of the new recipe instead of its config's"
    )
    parser.add_argument("--untied", action="store_true", help="give the new recipe an untied output head")
    asked = parser.parse_args()
    torch.manual_seed(0)
    new = step_of("speedrun", asked.batch_size, tie_embeddings=not asked.untied)
    costs = interleaved({"plain": step_of("quickstart"), "new": new}, asked.rounds)
    found = ratio(costs["new"], costs["plain"])
    print(
        f"time per token: {found.median:.2f} x the plain recipe's ({asked.rounds} rounds on "
        f"{torch.get_num_threads()} threads: {found.least:.2f} to {found.most:.2f})"
    )


if __name__ == "__main__":
    main()
