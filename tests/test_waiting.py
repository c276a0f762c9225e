"""Threads sleep where other programs take their cores, spin where none does, and results stay the same to the bit."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_gpt import waiting
from lightning_gpt.doctor.machine import threads as threads_checked
from lightning_gpt.hardware import incomplete_teams
from lightning_gpt.training.callbacks import BusyMachine
from lightning_gpt.waiting import SpinOrSleep, Waiting, cannot_choose
from tests.processes import run_forked


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if cannot_choose() is not None:
        torch.set_num_threads(before)
        pytest.skip(f"here nothing can be chosen: {cannot_choose()}")
    yield
    torch.set_num_threads(before)


def until(state: Callable[[], object], work: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < end
        work()


def choices(shares: list[tuple[float, int]]) -> list[bool]:
    """What is chosen after each of ``shares``, each with the number of windows that show it."""
    choice, now, found = SpinOrSleep(), 0.0, list[bool]()
    for share, windows in shares:
        for _ in range(windows):
            now += choice.window
            choice.take(share, now)
            found.append(choice.sleeps)
    return found


def test_two_crowded_windows_put_threads_to_sleep_and_two_free_ones_end_it() -> None:
    assert choices([(0.4, 1), (0.0, 1), (0.4, 2), (0.01, 2)]) == [False, False, False, True, True, False]
    assert not any(choices([(0.04, 100)])), "what takes no more than this gives way"


def test_spinning_is_tried_again_more_and_more_rarely() -> None:
    found = choices([(0.4, 2000)])
    tries = [number for number, sleeps in enumerate(found[2:], 2) if not sleeps]
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps[:4] == [41, 81, 161, 241], "10, 20, 40 and then 60 seconds, in windows of a quarter"
    assert len(tries) < len(found) / 100


def test_what_gives_way_to_spinning_threads_is_left_to_do_so() -> None:
    """Beside a program of the lowest priority sleeping threads wait for cores and spinning ones do not."""
    choice, now = SpinOrSleep(), 0.0
    states = []
    for _ in range(200):
        now += choice.window
        choice.take(0.4 if now < 1 else 0.3 if choice.sleeps else 0.04, now)
        states.append(choice.sleeps)
    assert states.count(True) == 20, "5 seconds, until spinning is tried"
    assert not any(states[40:])


def test_beside_a_busy_process_threads_sleep_and_results_stay_the_same_to_the_bit(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "_HELD", 0.0)
    values = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))

    def work() -> list[float]:
        return [
            float(values.sum()),
            float((values @ values).sum()),
            float((values.bfloat16() @ values.bfloat16()).sum()),
        ]

    expected, module, trainer = work(), L.LightningModule(), L.Trainer(accelerator="cpu", logger=False)
    callback = BusyMachine()
    callback.setup(trainer, module, "fit")
    watched = callback._context
    assert watched is not None
    assert watched.watches
    affinity = os.sched_getaffinity(0)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in affinity]
    try:
        until(lambda: watched.sleeps, work)
        assert "spare team" in [thread.name for thread in waiting.threading.enumerate()]
        assert work() == expected
        until(lambda: watched._since, work)
        for _ in range(2):
            callback.on_train_batch_end(trainer)
        said = capsys.readouterr().err
        assert said.startswith("other programs take cores (a thread had none for ")
        assert said.count("the 2 threads sleep while they wait for each other; results stay the same") == 1
    finally:
        for process in busy:
            process.kill()
            process.wait()
    callback.teardown(trainer, module, "fit")
    assert not {"spare team", "waiting"} & {thread.name for thread in waiting.threading.enumerate()}
    assert work() == expected


@pytest.mark.parametrize(
    ("environment", "threads", "reason"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, "OMP_WAIT_POLICY is 'ACTIVE'"),
        ({"GOMP_SPINCOUNT": "5"}, 2, "GOMP_SPINCOUNT is '5'"),
        ({}, 1, "one thread waits for nobody"),
    ],
)
def test_what_the_user_has_set_is_obeyed(
    two_threads: None, environment: dict[str, str], threads: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cannot_choose() == reason
    with Waiting() as watched:
        assert not watched.watches
        assert watched.news() is None


def test_another_openmp_is_left_alone(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "7f00-7f01 r--p 00000000 00:00 1   /opt/a folder/torch/lib/libiomp5.so\n"
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: text)
    assert cannot_choose() == "torch does not use GNU's OpenMP"


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"OMP_DYNAMIC": "TRUE"}, "OMP_DYNAMIC is 'TRUE': "),
        ({"OMP_DYNAMIC": "false"}, None),
        ({"OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "2"}, "OMP_THREAD_LIMIT is 1 of 2 threads: "),
        ({"OMP_THREAD_LIMIT": "2", "OMP_NUM_THREADS": "2"}, None),
    ],
)
def test_settings_that_make_products_wrong_are_refused(
    environment: dict[str, str], refused: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = incomplete_teams()
    assert (found is None) == (refused is None)
    (checked,) = threads_checked()
    assert (checked.level == "problem") == (refused is not None)
    if refused is not None:
        done = run_forked("lightning_gpt", "inspect", "--help", cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (2, f"error: {found}\n")
        assert done.stderr.startswith(f"error: {refused}")
        assert f"{checked.text}; {checked.remedy}" == found
