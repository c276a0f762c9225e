"""Freed memory serves the next training step inside the context, and is returned at its end."""

import resource
from collections.abc import Callable
from functools import partial

import lightning as L
import pytest
import torch

from lightning_gpt import kept_memory
from lightning_gpt.kept_memory import can_keep, freed_memory_kept
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.callbacks import KeptMemory
from lightning_gpt.training.optim import adamw

_SIZES = {"dim": 256, "vocab_size": 50257}  # gradients of 51 MB: above the 32 MB that are returned at once
_PAGES = 4 * 256 * 50257 // resource.getpagesize()
needs_glibc = pytest.mark.skipif(not can_keep(), reason="needs GNU's C library")


def new_pages(work: Callable[[], object]) -> int:
    """Pages that the system has to give the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(scope="module")
def step() -> Callable[[], None]:
    model = GPT(GPTConfig(n_layer=1, n_head=1, block_size=8, **_SIZES))
    optimizer, ids = adamw(model), torch.zeros(1, 8, dtype=torch.int64)

    def work() -> None:
        model.loss(ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    work()
    return work


@needs_glibc
def test_a_run_on_a_cpu_gives_each_step_the_memory_of_the_last_until_it_ends(step: Callable[[], None]) -> None:
    callback, module, trainer = KeptMemory(), L.LightningModule(), L.Trainer(accelerator="cpu", logger=False)
    ends = partial(callback.teardown, stage="fit"), partial(callback.on_exception, exception=KeyboardInterrupt())
    for end in ends:
        assert new_pages(step) > _PAGES
        callback.setup(trainer, module, "fit")
        assert min(new_pages(step) for _ in range(5)) < _PAGES / 10
        end(trainer, module)
    assert new_pages(step) > _PAGES


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages would not tell: GNU's library, too, serves a step from a hole of that size in its heap."""
    monkeypatch.setattr(kept_memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(kept_memory.ctypes, "CDLL", lambda name: pytest.fail("the library was opened"))
    with freed_memory_kept():
        assert not can_keep()
