"""A process that hangs is reported, with its step and the place in the code, and ends the run."""

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch.distributed.distributed_c10d import _get_default_store

from lightning_gpt.options import Range, check_options

_BEATS = 10  # in the limit
_LONGEST_BEAT = 5.0  # seconds
_WATCHERS = 2  # the first processes, of which one may be the one that hangs


@dataclass
class Whereabouts:
    """How far a process is.

    Args:
        count: Calls of this callback so far. All processes make the same calls, so the lowest is the furthest behind.
        step: The optimizer step that it is at; 1 is the run's first, 0 its start-up.
        doing: What it does there.
    """

    count: int = 0
    step: int = 0
    doing: str = "in the start-up"

    def described(self) -> str:
        """In words."""
        return f"in step {self.step}, {self.doing}" if self.step else self.doing


class Heartbeat(Callback):
    """Watches that all processes make progress.

    Once the processes have connected, each has a thread that writes down how far it is, at least ten times within the
    limit. The first process reads that of all of them, and so does the second, since the first may be the one that
    hangs. If none has made progress for the limit, the one that is furthest behind and does not wait for others is
    reported, or one that does not even write. The process that reports it then ends with status 1: torchrun starts all
    of them again, and processes that Lightning has started end with the first.

    Args:
        limit: Seconds without progress after which a process is reported. A step, validation batch or save that takes
            longer counts as hung.
        start_limit: The same until all have begun their first batch. There a process makes progress also while no other
            one waits for it, so that each may take its time to read the data. After 1,800 seconds processes give up
            waiting for each other.
    """

    def __init__(
        self,
        limit: Annotated[float, Range(2, 1500)] = 600,
        start_limit: Annotated[float, Range(2, 1500)] = 1500,
    ) -> None:
        check_options(Heartbeat.__init__, locals(), "heartbeat.")
        self.limit, self.start_limit = limit, start_limit
        self.progress = Whereabouts()
        self._ended = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1 and dist.is_initialized():
            self._ended = threading.Event()
            store: Any = _get_default_store()
            store = store.clone()
            store.set_timeout(timedelta(seconds=max(1.0, min(self.limit, self.start_limit) / _BEATS)))
            watch = _Watch(self, store, trainer.global_rank, trainer.world_size, threading.get_ident())
            for work in (watch.run, watch.guard) if trainer.global_rank < _WATCHERS else (watch.run,):
                threading.Thread(target=work, args=(self._ended,), daemon=True, name="heartbeat").start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._ended.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._ended.set()

    def _at(self, trainer: L.Trainer, doing: str) -> None:
        self.progress = Whereabouts(self.progress.count + 1, trainer.global_step + 1, doing)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "in the forward pass")

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "in the backward pass")

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "in the optimizer step")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "after a batch")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "in the validation")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "in the validation")

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        self._at(trainer, "saving a checkpoint")


class _Watch:
    """The thread of a process.

    Args:
        heartbeat: What it writes down.
        store: Where all processes write and read; this thread's own connection to it.
        rank: This process.
        size: The number of processes.
        main: The thread that trains.
    """

    def __init__(self, heartbeat: Heartbeat, store: Any, rank: int, size: int, main: int) -> None:
        self._heartbeat = heartbeat
        self._store = store
        self._rank = rank
        self._keys = [f"lightning_gpt/heartbeat/{each}" for each in range(size)]
        self._main = main
        self._every = min(_LONGEST_BEAT, heartbeat.limit / _BEATS, heartbeat.start_limit / _BEATS)
        self._beats = 0
        self._written: dict[int, tuple[int, float]] = {}  # by process: its newest beat, and when it was new here
        self._began = self._moved = self._answered = time.monotonic()
        self._state: list[tuple[int, bool]] = []
        self._all_have_begun = False
        self._lost = False  # the connection to the process that has the store

    @property
    def _limit(self) -> float:
        """Seconds without progress after which a process is reported, so that it has been by the limit."""
        of_now = self._heartbeat.limit if self._all_have_begun else self._heartbeat.start_limit
        return of_now - 2 * self._every

    def run(self, ended: threading.Event) -> None:
        """Write, and read what the others write, until the training has ended or a process hangs."""
        while not ended.wait(self._every):
            self._beats += 1
            own = {**asdict(self._heartbeat.progress), "beat": self._beats, **self._place()}
            try:
                self._store.set(self._keys[self._rank], json.dumps(own))
                found = self._read() if self._rank < _WATCHERS else {}
            except dist.DistNetworkError:  # the process that has the store has ended
                self._lost = True
                return
            except Exception:  # nosec B112
                continue  # it does not answer, and is asked again
            self._answered = time.monotonic()
            said = self._hanging(found, self._answered) if found else None
            if said is not None and not ended.is_set():
                self._end(said)

    def guard(self, ended: threading.Event) -> None:
        """End the run where the store has not answered for the limit: a process that stands still, or ended, has it."""
        while not ended.wait(self._every):
            silent = time.monotonic() - self._answered
            if silent > self._limit and not ended.is_set():
                what = "has ended" if self._lost else f"hangs: it has not answered for {silent:.0f} s"
                place = self._heartbeat.progress.described()
                self._end(f"process 0 {what}; process {self._rank} is {place} and waits for it")

    def _read(self) -> dict[int, dict[str, Any]]:
        here = [number for number, key in enumerate(self._keys) if self._store.check([key])]
        values = self._store.multi_get([self._keys[number] for number in here])
        return {number: json.loads(value) for number, value in zip(here, values, strict=True)}

    def _hanging(self, found: dict[int, dict[str, Any]], now: float) -> str | None:
        """What is to be said about a process that hangs; None if none does."""
        size = len(self._keys)
        lowest = min(each["count"] for each in found.values())
        self._all_have_begun = len(found) == size and lowest > 0
        starting = not self._all_have_begun
        none_waits = len(found) == size and not any(each["waits"] for each in found.values())
        state = [(each["count"], starting and each["waits"]) for each in found.values()]
        if state != self._state or (starting and none_waits):
            self._state, self._moved = state, now
        for number, each in found.items():
            if self._written.get(number, (-1, 0.0))[0] != each["beat"]:
                self._written[number] = (each["beat"], now)
        silent = [
            number for number in range(size) if now - self._written.get(number, (0, self._began))[1] > self._limit / 2
        ]
        if now - self._moved < self._limit:
            return None
        behind = [number for number, each in found.items() if each["count"] == lowest]
        working = [number for number in behind if not found[number]["waits"]]
        culprit = (silent or working or behind)[0]
        each = found.get(culprit, {**asdict(Whereabouts()), "place": ""})
        place = "" if culprit in silent else f" ({each['place']})"
        what = "has not answered" if culprit in silent else "has made no progress"
        at = Whereabouts(each["count"], each["step"], each["doing"]).described()
        return f"process {culprit} hangs: it {what} for {now - self._moved:.0f} s {at}{place}; the others wait for it"

    def _place(self) -> dict[str, Any]:
        """Where the training thread is, in the innermost code that is not torch's, and whether it waits for others."""
        frame, place, waits = sys._current_frames().get(self._main), "", False
        innermost = True
        while frame is not None:
            file = frame.f_code.co_filename
            of_torch = f"{os.sep}torch{os.sep}" in file
            waits = waits or f"{os.sep}torch{os.sep}distributed{os.sep}" in file
            waits = waits or (innermost and frame.f_code.co_name == "_engine_run_backward")
            innermost = False
            if not of_torch:
                place = f"{Path(file).name}:{frame.f_lineno} in {frame.f_code.co_name}"
                break
            frame = frame.f_back
        return {"place": place, "waits": waits}

    def _end(self, said: str) -> None:
        sys.stderr.write(f"error: {said}\n")
        sys.stderr.flush()
        os._exit(1)  # the thread that trains waits for a process that will not come
