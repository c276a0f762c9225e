"""The coordinate check: does the size of activations depend on the width, as training goes?

Yang et al. 2022 (2203.03466), appendix D.1: under μP every activation keeps its size at any width after any number of
steps; without, some grow with the width from the first step on, and that is why learning rates do not carry over.
"""

import dataclasses
from collections.abc import Sequence

import torch

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.mup import MuP, rescale
from lightning_gpt.training.optim import Optimization, optimizer

_BATCH = (4, 32)


def coordinate_check(
    widths: Sequence[int],
    steps: int = 4,
    mup: MuP | None = None,
    lr: float = 0.01,
    config: GPTConfig = GPTConfig(n_layer=2, n_head=2, dim=64, block_size=_BATCH[1], vocab_size=128),
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, list[list[float]]]:
    """Train models of several widths on one batch of random tokens, and measure how far their activations moved.

    Args:
        widths: To compare; heads stay as wide as ``config``'s, unless ``mup`` has a ``base_head_dim``: then there are
            as many as ``config`` has.
        steps: Optimizer steps.
        mup: The base under μP; the standard parametrisation when omitted.
        lr: Adam's, the same for all widths and steps.
        config: The shape of the models, and the width that says how wide heads are.
        seeds: Of the starts; what is measured is the mean over them.

    Returns:
        For each activation (``blocks.{i}.attention.scores``, ``blocks.{i}.after_ffn`` and ``logits``) a row for each
        step from 1 on, with the root mean square of its change since the start at each width.
    """
    head_dim = config.dim // config.n_head
    moved: dict[str, list[list[float]]] = {}
    for column, width in enumerate(widths):
        n_head = config.n_head if mup is not None and mup.base_head_dim is not None else width // head_dim
        wide = dataclasses.replace(config, dim=width, n_head=n_head)
        for seed in seeds:
            for step, sizes in enumerate(_changes(wide, steps, Optimization(lr=lr, mup=mup), seed)):
                for name, size in sizes.items():
                    rows = moved.setdefault(name, [[0.0] * len(widths) for _ in range(steps)])
                    rows[step][column] += size / len(seeds)
    return moved


def _changes(config: GPTConfig, steps: int, optimization: Optimization, seed: int) -> list[dict[str, float]]:
    """After each step, how far each activation is from its start: root mean squares by name."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (_BATCH[0], _BATCH[1] + 1), generator=generator)
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    blocks = range(config.n_layer)
    names = [*(f"blocks.{i}.{part}" for i in blocks for part in ("attention.scores", "after_ffn")), "logits"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config)
    if optimization.mup is not None:
        rescale(model, optimization.mup)
    training = optimizer(model, optimization)

    def activations() -> dict[str, torch.Tensor]:
        with torch.no_grad(), model.record(names) as trace:
            model(ids)
        return {name: trace[name] for name in names}

    start, found = activations(), []
    for _ in range(steps):
        training.zero_grad()
        model.loss(ids, targets).backward()  # type: ignore[no-untyped-call]
        training.step()
        found.append({name: float((now - start[name]).square().mean().sqrt()) for name, now in activations().items()})
    return found
