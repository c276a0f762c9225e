"""One case: a run that is hit several times, resumed each time until it has finished, and then compared."""

import itertools
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.processes import Forks, Process
from benchmarks.chaos.subject import Moment, Victim, temporary_files
from benchmarks.chaos.ways import Way

SECONDS_OF_A_RUN = 600.0
_SECONDS_OF_ORPHANS = 30.0
_MOST_SAVES, _SECONDS_WITHIN_A_SAVE, _SECONDS_WITHIN_A_MOMENT = 6, 0.005, 0.3
_SHARE_OF_A_RUN = 0.7  # a resumed run is shorter, and one that ends before it is hit is no kill
AIMS = ("any",) * 4 + ("save",) * 4 + ("start-up", "validation", "exit")


@dataclass
class Hit:
    """A run that was hit: how and where, and what it did then."""

    way: str
    moment: Moment
    status: int | None
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass
class Case:
    """What became of a run: the hits, how often it was resumed, and what differs in the end from the one left alone."""

    subject: str
    forked: bool
    place: str
    hits: list[Hit] = field(default_factory=list)
    resumes: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        return [*self.differences, *(each for hit in self.hits for each in (*hit.faults, *hit.lost))]

    def to_json(self) -> str:
        """The case as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Case":
        """The case that :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "hits": [Hit(**hit) for hit in values["hits"]]})


@dataclass(frozen=True)
class Alone:
    """The run that was left alone: its folder, and the seconds that it took in all and to start."""

    folder: Path
    seconds: float
    seconds_to_start: float


def run_alone(subject: Victim, folder: Path, log: Path, forks: Forks | None) -> Alone:
    """Run a subject without hitting it.

    Raises:
        RuntimeError: It did not finish.
    """
    folder.mkdir(parents=True)
    began = time.monotonic()
    process = Process(subject.call(folder), folder, log, forks)
    try:
        while not process.ended(0.01) and _moment(subject, folder) == "start-up":
            pass
        started = time.monotonic() - began
        if not process.ended(SECONDS_OF_A_RUN) or process.status != 0:
            raise RuntimeError(f"{subject.name}, left alone, ended with {process.status}: {log}")
    finally:
        process.close()
    return Alone(folder, time.monotonic() - began, started)


def run_case(
    subject: Victim,
    ways: Sequence[Way],
    folder: Path,
    place: str,
    alone: Alone,
    logs: Path,
    draw: random.Random,
    forks: Forks | None,
    aims: Sequence[str] = AIMS,
) -> Case:
    """Run a subject in ``folder``, hit it in each of ``ways``, one per attempt, and let the last attempt finish.

    Args:
        subject: What is run.
        ways: How its first attempts are hit.
        folder: An empty folder.
        place: What to call the file system that it is on.
        alone: The run to compare with.
        logs: The folder for the output of each attempt; that of attempts without a fault is removed.
        draw: Decides when to hit.
        forks: What a forked subject's processes are forked from.
        aims: What moments to aim at: ``any``, ``save``, or a moment that the subject knows.
    """
    case, kept = Case(subject.name, forks is not None, place), dict[str, int]()
    for attempt in itertools.count():
        log = logs / f"{folder.name}-{attempt}.log"
        before = set(temporary_files(folder))
        case.resumes += attempt > 0
        process = Process(subject.call(folder), folder, log, forks)
        try:
            way = ways[attempt] if attempt < len(ways) else None
            hit = None if way is None else _hit(way, process, subject, folder, before, alone, draw, aims)
            if not process.ended(SECONDS_OF_A_RUN):
                case.differences.append(f"attempt {attempt} hangs")
                return case
            left = process.orphans(_SECONDS_OF_ORPHANS)
        finally:
            process.close()
        done, now = subject.done(folder), subject.kept(folder)
        if hit is None or way is None:
            if process.status != 0:
                case.differences.append(f"attempt {attempt} ended with {process.status}: {process.said()[-1:]}")
                return case
        else:
            case.hits.append(hit)
            hit.status = process.status
            hit.faults += way.faults(process, done)
            if left:
                hit.faults.append(f"{len(left)} processes are left behind")
            way.clean_up(subject, folder)
            if way.forgets:
                kept, done, now = {}, subject.done(folder), subject.kept(folder)
            else:
                owed = subject.owed(folder, waited=process.status in (0, 130))
                due = {**kept, **{name: max(kept.get(name, 0), least) for name, least in owed.items()}}
                hit.lost += [
                    f"{name}: {now.get(name, 0)} < {least}" for name, least in due.items() if now.get(name, 0) < least
                ]
            if not hit.faults and not hit.lost:
                log.unlink()
        kept = {**kept, **now}
        if done:
            break
        if attempt >= len(ways):
            case.differences.append(f"attempt {attempt} ended with 0 and has not finished")
            return case
    case.differences += subject.differences(folder, alone.folder)
    # a run that was killed inside its first save cannot be resumed, so its temporary file stays alone in its folder
    temporary = [path for path in temporary_files(folder) if len(list(path.parent.iterdir())) > 1]
    case.differences += [f"{path.relative_to(folder)} is left" for path in temporary]
    return case


def _hit(
    way: Way,
    process: Process,
    subject: Victim,
    folder: Path,
    before: set[Path],
    alone: Alone,
    draw: random.Random,
    aims: Sequence[str],
) -> Hit | None:
    """Hit a run at a random moment; None if it ended before."""
    _wait(process, subject, folder, before, alone, draw, draw.choice(aims))
    if process.ended():
        return None
    moment = "inside a save" if set(temporary_files(folder)) - before else _moment(subject, folder)
    way.strike(process, subject, folder, draw)
    return Hit(way.name, moment, None)


def _moment(subject: Victim, folder: Path) -> Moment:
    """Where a run is, which may rename its folders meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            return subject.moment(folder)


def _wait(
    process: Process, subject: Victim, folder: Path, before: set[Path], alone: Alone, draw: random.Random, aim: str
) -> None:
    """Wait for a random moment: any, one inside a save, or one in a part of the run that is short."""
    if aim in ("any", "start-up"):
        seconds = alone.seconds_to_start if aim == "start-up" else _SHARE_OF_A_RUN * alone.seconds
        end = time.monotonic() + draw.uniform(0, seconds)
        while time.monotonic() < end and not process.ended(min(0.02, max(0.001, end - time.monotonic()))):
            if aim == "start-up" and _moment(subject, folder) != aim:
                return
        return
    saves, saving = draw.randint(1, _MOST_SAVES), False
    while not process.ended():
        if aim == "save":
            was, saving = saving, bool(set(temporary_files(folder)) - before)
            saves -= saving and not was
            if saves == 0:
                time.sleep(draw.uniform(0, _SECONDS_WITHIN_A_SAVE))
                return
        elif _moment(subject, folder) == aim:
            time.sleep(draw.uniform(0, _SECONDS_WITHIN_A_MOMENT))
            return
        else:
            time.sleep(0.002)
