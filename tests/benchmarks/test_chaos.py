"""The short form of ``python -m benchmarks.chaos``: each subject and each way once, and faults that it must find."""

import json
import random
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.chaos.case import Alone, Case, run_alone, run_case
from benchmarks.chaos.processes import Forks, Process
from benchmarks.chaos.report import counts, markdown
from benchmarks.chaos.subject import Victim, unequal
from benchmarks.chaos.subjects import KilledFit, KilledPair, KilledPrepare, KilledStudy
from benchmarks.chaos.ways import Ask, Deleted, Kill, Way
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


def left_alone(kind: type[Victim], root: Path, forks: Forks) -> tuple[Victim, Alone]:
    (root / "inputs").mkdir()
    subject = kind(root / "inputs", forked=True)
    subject.write_inputs()
    return subject, run_alone(subject, root / "alone", root / "alone.log", forks)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Victim, Alone]:
    return left_alone(KilledFit, tmp_path_factory.mktemp("fit"), forks)


def hit(
    left: tuple[Victim, Alone], ways: Sequence[Way], aim: str, folder: Path, logs: Path, forks: Forks, seed: int = 0
) -> Case:
    subject, alone = left
    return run_case(subject, ways, folder, "here", alone, logs, random.Random(seed), forks, aims=(aim,))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the one for temporary files, where there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("ways", "aim"),
    [
        ([Kill()], "save"),
        ([Ask(signal.SIGTERM), Ask(signal.SIGHUP)], "validation"),
        ([Ask(signal.SIGINT, times=2)], "save"),
        ([Ask(signal.SIGINT), Ask(signal.SIGTERM), Ask(signal.SIGHUP)], "start-up"),
        ([Deleted()], "validation"),
        ([Deleted("checkpoints")], "save"),
    ],
    ids=["killed", "asked", "asked twice", "asked at its start", "run deleted", "checkpoints deleted"],
)
def test_fit(ways: list[Way], aim: str, fit: tuple[Victim, Alone], folder: Path, tmp_path: Path, forks: Forks) -> None:
    case = hit(fit, ways, aim, folder, tmp_path, forks)
    assert case.problems == []
    assert case.hits


def test_two_processes(folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> None:
    """The second process ends with the first, though it has not met it yet; the first ends with the second."""
    left = left_alone(KilledPair, tmp_path_factory.mktemp("two"), forks)
    # seed 7 draws the second save that is seen: a busy machine overlooks some, and the run must not end before
    case = hit(left, [Kill(child=True)], "save", folder, tmp_path, forks, seed=7)
    assert (case.problems, len(case.hits)) == ([], 1)


def test_prepare(folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> None:
    left = left_alone(KilledPrepare, tmp_path_factory.mktemp("prepare"), forks)
    case = hit(left, [Kill(), Ask(signal.SIGTERM)], "step", folder, tmp_path, forks)
    assert case.problems == []
    assert case.hits


class OneCell(KilledStudy):
    """The shortest study."""

    depths = (1,)


def test_study(folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> None:
    left = left_alone(OneCell, tmp_path_factory.mktemp("study"), forks)
    case = hit(left, [Ask(signal.SIGHUP)], "step", folder, tmp_path, forks)
    assert (case.problems, len(case.hits)) == ([], 1)


def test_the_least_difference_is_found(fit: tuple[Victim, Alone], tmp_path: Path) -> None:
    """One bit of one weight, and one digit of one loss."""
    subject, alone = fit
    weights = {"a": torch.ones(3), "steps": [1, 2]}
    changed = {"a": torch.tensor([1.0, 1.0, 1.0 + 2**-23]), "steps": [1, 2]}
    assert list(unequal(weights, weights)) == []
    assert list(unequal(weights, changed)) == ["['a'] differs"]
    assert list(unequal(weights, {**weights, "steps": [1, 3]})) == ["['steps'][1] is 2, was 3"]

    run = tmp_path / "runs/tiny/version_0"
    (run / "checkpoints").mkdir(parents=True)
    whole = alone.folder / "runs/tiny/version_0"
    content = read_checkpoint(whole / "checkpoints/last.ckpt")
    next(iter(content["state_dict"].values()))[0] += 1
    write_checkpoint(content, run / "checkpoints/last.ckpt")
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2]))
    found = list(subject.differences(tmp_path, alone.folder))
    assert "last.ckpt['state_dict']['model.token_embedding.weight'] differs" in found
    assert any(each.startswith("best.ckpt") for each in found)
    assert any(each.startswith("metrics.jsonl") for each in found)


@pytest.mark.parametrize(("trained", "killed", "stopped"), [(5, 0, 0), (6, 0, 5), (16, 10, 15)])
def test_a_kill_costs_the_save_that_is_being_written(
    trained: int, killed: int, stopped: int, fit: tuple[Victim, Alone], tmp_path: Path
) -> None:
    """One is written at a time, while the training goes on; a run that is asked to stop waits for it."""
    subject, alone = fit
    whole, run = (root / "runs/tiny/version_0" for root in (alone.folder, tmp_path))
    run.mkdir(parents=True)
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= trained))
    assert subject.owed(tmp_path, waited=False) == {"step saved": killed}
    assert subject.owed(tmp_path, waited=True) == {"step saved": stopped}


class Careless(KilledFit):
    """Loses what it saved, and takes as saved what was not."""

    def owed(self, folder: Path, waited: bool) -> dict[str, int]:
        return {"step saved": 1000}


class Silent(Kill):
    """A stop without the status and the line that belong to one."""

    def faults(self, process: Process, done: bool) -> Iterator[str]:
        yield from Ask(signal.SIGTERM).faults(process, done)


def test_what_is_lost_and_what_ends_wrongly_is_counted(
    fit: tuple[Victim, Alone], folder: Path, tmp_path: Path, forks: Forks
) -> None:
    subject, alone = fit
    case = hit((Careless(subject.root, forked=True), alone), [Silent()], "save", folder, tmp_path, forks)
    found = counts([case])
    assert (found["kills"], found["resumes"], found["lost"], found["wrong endings"], found["differences"]) == (
        (1, 1, 1, 1, 0)
    )
    assert found["by way"] == {"fit": {"SIGKILL": 1}}
    page = markdown([case], [])
    assert "exit status -9 after SIGTERM" in page
    assert "< 1000" in page
