"""Saves in the background: one at a time, of the state at their step, and never lost sight of."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from lightning_gpt import saving
from lightning_gpt.checkpoint_file import read_checkpoint
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.saving import BackgroundSaves, Copier, first_non_finite
from lightning_gpt.training.callbacks import LastCheckpoint, checkpoints
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.whole_file import previous_of
from tests.training.toy import Toy, fit

STEPS = 6


class SlowDisk(BackgroundSaves):
    """Begins to write only once the training has gone on by two steps, or has ended."""

    def __init__(self, module: Toy) -> None:
        super().__init__()
        self.module = module
        self.gone_on: list[bool] = []

    def write(self, save: Callable[[Any], None], content: Any) -> None:
        begun = len(self.module.seen)

        def later(content: Any) -> None:
            end = time.monotonic() + 60
            while len(self.module.seen) < min(begun + 2, STEPS) and time.monotonic() < end:
                time.sleep(0.001)
            self.gone_on.append(len(self.module.seen) >= min(begun + 2, STEPS))
            save(content)

        super().write(later, content)


class FullDisk(BackgroundSaves):
    """Fails."""

    def write(self, save: Callable[[Any], None], content: Any) -> None:
        def fail(content: Any) -> None:
            raise WorkError(f"no space for step {content['global_step']}")

        super().write(fail, content)


def files(saves: BackgroundSaves) -> CheckedFiles:
    """The plugin of a run, with these saves."""
    plugin = CheckedFiles()
    plugin.saves = saves
    return plugin


def test_the_training_goes_on_while_a_save_is_written(tmp_path: Path) -> None:
    module = Toy([1.0] * STEPS)
    disk = SlowDisk(module)
    fit(module, tmp_path, LastCheckpoint(every_n_steps=3), plugins=[files(disk)])
    assert disk.gone_on == [True, True]
    last = tmp_path / "checkpoints/last.ckpt"
    for path, step in ((previous_of(last), 3), (last, 6)):
        saved = read_checkpoint(path)
        assert saved["global_step"] == step
        assert float(saved["state_dict"]["weight"]) == pytest.approx(-0.1 * step), "the state is that of its step"


class Minutes(Toy):
    """A step takes a minute by the clock."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.now += 60
        return super().training_step(batch, batch_idx)

    now = 0.0


def minutes(steps: int, monkeypatch: pytest.MonkeyPatch) -> Minutes:
    module = Minutes([1.0] * steps)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: module.now))
    return module


class Noted(CheckedFiles):
    """Notes the steps that are saved."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.steps.append(checkpoint["global_step"])
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.mark.parametrize(("every_minutes", "expected"), [(2.5, [3, 5, 8, 10]), (6, [5, 10])])
def test_time_counts_from_the_last_save_whatever_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_minutes: float, expected: list[int]
) -> None:
    noted = Noted()
    callback = LastCheckpoint(every_n_steps=5, every_minutes=every_minutes)
    fit(minutes(12, monkeypatch), tmp_path, callback, plugins=[noted])
    assert noted.steps == [*expected, 12]


class SecondOfTwo(SingleDeviceStrategy):
    """As the second of two processes; the first wants to save at step 20, by its clock."""

    is_global_zero = False

    def __init__(self) -> None:
        super().__init__("cpu")
        self.world_size = 2
        self.asked: list[int] = []
        self.saved: list[int] = []

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        assert not decision, "its own clock does not count"
        assert self.lightning_module is not None
        self.asked.append(self.lightning_module.trainer.global_step)
        return self.asked[-2:] == [20, 20]  # first whether to stop, then whether it is time

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.saved.append(checkpoint["global_step"])


def test_several_processes_save_by_the_clock_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = SecondOfTwo()
    fit(minutes(33, monkeypatch), tmp_path, LastCheckpoint(every_minutes=1), strategy=strategy)
    assert strategy.saved == [20, 33]
    assert strategy.asked == [10, 10, 20, 20, 30, 30]


def test_a_time_between_saves_is_above_zero() -> None:
    with pytest.raises(CallError, match=r"checkpoints.every_minutes"):
        LastCheckpoint(every_minutes=0)


def test_a_save_that_fails_ends_the_training(tmp_path: Path) -> None:
    module = Toy([1.0] * STEPS)
    with pytest.raises(WorkError, match="no space for step 2"):
        fit(module, tmp_path, LastCheckpoint(every_n_steps=2), plugins=[files(FullDisk())])
    assert len(module.seen) == 4, "the next save finds it"
    module = Toy([1.0] * 2)
    with pytest.raises(WorkError, match="no space for step 2"):
        fit(module, tmp_path, LastCheckpoint(every_n_steps=2), plugins=[files(FullDisk())])


def test_an_error_is_raised_once_and_one_save_is_written_at_a_time() -> None:
    saves, running, order = BackgroundSaves(), threading.Event(), []

    def first(content: Any) -> None:
        running.wait(60)
        order.append(1)
        raise WorkError("full")

    saves.write(first, {})
    running.set()
    with pytest.raises(WorkError, match="full"):
        saves.write(lambda content: order.append(2), {})
    saves.wait()
    assert order == [1]


def test_no_process_is_forked_inside_a_save() -> None:
    """It would keep the file open."""
    saves, order = BackgroundSaves(), []
    go = threading.Event()
    saves.write(lambda content: (go.wait(60), order.append(content))[1], "saved")
    threading.Timer(0.05, go.set).start()
    child = os.fork()
    if child == 0:
        os._exit(len(order))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_copy_is_made_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a device, on a system that refuses: it has none."""
    monkeypatch.setattr(saving, "PINNED", {"cpu"})
    weight = torch.arange(6.0).view(2, 3).T
    copy = Copier().copied({"a": weight})
    assert torch.equal(copy["a"], weight)
    assert copy["a"].data_ptr() != weight.data_ptr()


def test_a_copy_shares_what_the_content_shares_and_nothing_else() -> None:
    weight = torch.arange(6.0).view(2, 3)
    content = {
        "state": {"a": weight, "tied": weight.detach(), "row": weight[1]},
        "list": [weight, (1, "x")],
        "none": None,
    }
    copy = Copier().copied(content)
    weight.zero_()
    content["state"]["new"] = 1
    content["list"].append(2)
    assert set(copy["state"]) == {"a", "tied", "row"}
    assert copy["state"]["a"].data_ptr() == copy["state"]["tied"].data_ptr() == copy["list"][0].data_ptr()
    assert copy["state"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copy["state"]["row"].tolist() == [3, 4, 5]
    assert copy["list"][1:] == [(1, "x")]


def test_a_save_takes_the_memory_of_the_one_before(tmp_path: Path) -> None:
    saves, weight = BackgroundSaves(), torch.arange(6.0).view(2, 3)
    saved: list[dict[str, Any]] = []
    values: list[Any] = []

    def save(content: dict[str, Any]) -> None:
        saved.append(content)
        values.append({name: each.tolist() for name, each in content.items()})

    with torch.inference_mode():  # as at a validation
        saves.write(save, {"a": weight, "b": weight + 1, "turned": weight.T})
    weight.zero_()
    saves.write(save, {"b": weight, "new": torch.ones(5), "turned": weight.T})
    saves.wait()
    assert values[0] == {"a": [[0, 1, 2], [3, 4, 5]], "b": [[1, 2, 3], [4, 5, 6]], "turned": [[0, 3], [1, 4], [2, 5]]}
    assert values[1] == {"b": [[0] * 3] * 2, "new": [1] * 5, "turned": [[0] * 2] * 3}
    first, second = ({name: each.data_ptr() for name, each in content.items()} for content in saved)
    assert second["b"] in (first["a"], first["b"])
    assert second["turned"] == first["turned"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_weight_that_is_not_finite_is_named(bad: float) -> None:
    good = {"a": torch.randn(3, 4), "none": torch.zeros(0, 4), "count": torch.tensor(3), "text": "x"}
    assert first_non_finite(good) is None
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for place in range(12):
            weight = torch.randn(12).to(dtype)
            weight[place] = bad
            assert first_non_finite({**good, "b": weight.view(3, 4), "c": weight}) == "b"
    assert first_non_finite({"large": torch.full((4,), torch.finfo(torch.float16).max, dtype=torch.float16)}) is None
