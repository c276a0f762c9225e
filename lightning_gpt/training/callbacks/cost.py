"""What a run costs: time per step, memory, parameters."""

import ctypes
import gc
import statistics
import time
from collections import deque
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.share import data_place
from lightning_gpt.hardware import resident_bytes, restart_peak
from lightning_gpt.models.graph import held_by_graphs
from lightning_gpt.training.module import LanguageModule

_MARKS_HELD = 256
STEPS_KEPT = 1000
"""The last steps, whose medians are taken: a run of millions of steps must not keep a number for each."""


class StepClock:
    """Seconds between marks; on a GPU by the device's own clock, so that a mark does not wait for the device.

    Args:
        device: The device that does the timed work.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = deque[float](maxlen=STEPS_KEPT)
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._last: float | None = None

    def restart(self) -> None:
        """Discard the time since the last mark."""
        self._collect()
        self._events, self._last = [], None

    def forget(self) -> None:
        """Discard the steps so far, but not the time since the last mark."""
        self._collect()
        self.seconds.clear()

    def mark(self) -> None:
        """End a step and begin the next."""
        if self._on_gpu:
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[-1].record()
            if len(self._events) > _MARKS_HELD:
                self._collect()
            return
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    def _collect(self) -> None:
        if len(self._events) > 1:
            self._events[-1].synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            self.seconds += [begin.elapsed_time(end) / 1000 for begin, end in pairs]
            self._events = self._events[-1:]

    def median(self) -> float | None:
        """The median of the last steps, in seconds; None before the first."""
        self._collect()
        return statistics.median(self.seconds) if self.seconds else None


class PeakMemory:
    """The peak memory of each step in bytes, above what was in use before the first.

    On CUDA the memory that torch allocated, and what graphs hold; on a CPU under Linux the resident set; elsewhere
    nothing is measured.

    Args:
        device: The device that does the measured work.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = deque[int](maxlen=STEPS_KEPT)
        self._device = device
        self._before = self._in_use()

    def _in_use(self) -> int | None:
        if self._device.type == "cuda":
            return 0  # so that the weights count too
        _give_back()
        return resident_bytes()

    def begin(self) -> None:
        """Begin a step."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._before is not None:
            with suppress(OSError):
                restart_peak()

    def end(self) -> None:
        """End the step."""
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else resident_bytes(peak=True)
        if peak is not None and self._before is not None:
            self.bytes.append(peak - self._before)

    def median(self) -> float | None:
        """The median of the steps' peaks in bytes; None where nothing was measured."""
        if not self.bytes:
            return None
        return statistics.median(self.bytes) + (held_by_graphs(self._device) if self._device.type == "cuda" else 0)


class Cost(Callback):
    """Logs the cost of a run once, at its end, with the number of the last optimizer step.

    - ``cost/step_seconds``: median wall time of an optimizer step of this process, without steps interrupted by
      validation.
    - ``cost/tokens_per_second``: tokens per step, over all processes, divided by that time. Both are of the steps with
      the most tokens, where the batch grows or an epoch ends in a smaller step.
    - ``cost/peak_memory_mb``: median over the steps of a step's peak, in MB of 10⁶ bytes. On CUDA
      ``max_memory_allocated``, which includes the weights, and the memory that CUDA graphs keep for replayed steps; on
      a CPU the growth of the resident set since before the first step: gradients, optimizer state, activations. On a
      CPU it is logged under Linux only.
    - ``cost/parameters``: trainable parameters.

    Medians, because steps in which something is logged or saved do more than train; of the last 1,000 steps.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = StepClock(pl_module.device)
        self._memory: PeakMemory | None = None
        self._step = trainer.global_step
        self._step_tokens = self._tokens = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._clock.restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            _give_back()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._tokens == 0:
            self._memory = self._memory or PeakMemory(pl_module.device)
            self._memory.begin()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._tokens += batch["targets"].numel() * data_place(trainer)[1]
        if trainer.global_step != self._step:
            self._step, tokens, self._tokens = trainer.global_step, self._tokens, 0
            if tokens > self._step_tokens:
                self._step_tokens = tokens
                self._clock.forget()
            elif tokens < self._step_tokens:
                self._clock.restart()
            self._clock.mark()
            assert self._memory is not None
            self._memory.end()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = self._clock.median()
        if seconds is None:
            return
        values = {
            "cost/step_seconds": seconds,
            "cost/tokens_per_second": self._step_tokens / seconds,
            "cost/parameters": float(sum(p.numel() for p in _whole(pl_module).parameters() if p.requires_grad)),
        }
        peak = None if self._memory is None else self._memory.median()
        if peak is not None:
            values["cost/peak_memory_mb"] = peak / 1e6
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def _whole(module: L.LightningModule) -> torch.nn.Module:
    """What to count the parameters of: all layers, also where this process has only some of them."""
    return module.model_to_count() if isinstance(module, LanguageModule) else module


def _give_back() -> None:
    """Return unused memory to the system, so that what a validation freed is not counted for the next step."""
    gc.collect()
    with suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
