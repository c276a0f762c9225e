"""Kill real runs at random moments, resume them, and compare each with a run that was left alone.

    python -m benchmarks.chaos --kills 200 --seed 0 --out FOLDER

Runs of ``fit``, ``fit`` in two processes, ``prepare`` and ``study`` are ended by signals, a full disk and deleted
folders, on one file system and on two. Each is resumed until it has finished. Weights, optimizer state, losses and the
data's cursor must then equal those of the run left alone to the bit, and nothing may be left behind.

Repeat the command to continue where it was stopped. FOLDER gets ``report.md``, ``report.json``, one line per case in
``cases.jsonl``, and the output of attempts that went wrong. The exit status is 1 if anything did.
"""

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.chaos.case import Alone, Case, run_alone, run_case
from benchmarks.chaos.places import ONE, SMALL, TWO, places
from benchmarks.chaos.processes import Forks
from benchmarks.chaos.report import counts, markdown
from benchmarks.chaos.subject import Victim
from benchmarks.chaos.subjects import SUBJECTS, KilledFit, KilledPair, KilledPrepare, KilledStudy
from benchmarks.chaos.ways import WAYS, Way

# a start from nothing costs seconds, so most first processes are forks; each subject also starts fresh ones
_FITS: list[tuple[type[Victim], bool]] = [(KilledFit, True)] * 5
_SLOW: list[tuple[type[Victim], bool]] = [
    (KilledPrepare, True),
    (KilledPair, True),
    (KilledFit, False),
    (KilledStudy, True),
    (KilledPrepare, False),
    (KilledPair, False),
    (KilledStudy, False),
]
_ROUND = [case for slow in _SLOW for case in (*_FITS, slow)]
_HITS_OF_A_CASE = (2, 6)


def plan(
    seed: int, only: Sequence[str], have: Sequence[str]
) -> Iterator[tuple[type[Victim], bool, list[Way], str, random.Random]]:
    """The cases, endlessly: subject, whether it is forked, the ways to hit it, the place, and its random numbers.

    The ways of each subject take turns, so that all are used equally often.
    """
    turns: dict[type[Victim], Iterator[Way]] = {}
    for number, (subject, forked) in enumerate(itertools.cycle(_ROUND)):
        draw = random.Random(f"{seed}/{number}")
        if only and subject.name not in only:
            continue
        ways = [way for way in WAYS if way.suits(subject) and (SMALL in have or not way.needs_small_disk)]
        turn = turns.setdefault(subject, itertools.cycle(ways))
        chosen = list(itertools.islice(turn, draw.randint(*_HITS_OF_A_CASE)))
        place = draw.choice([name for name in (ONE, TWO) if name in have])
        yield subject, forked, chosen, SMALL if any(way.needs_small_disk for way in chosen) else place, draw


def main() -> int:
    """Parse the flags and run cases until there are enough kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="decides the cases and their moments")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; an earlier run in it continues")
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--only", choices=names, action="append", default=[], help="a subject; may be repeated")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what it has started ends with it
    out = options.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    log = out / "cases.jsonl"
    cases = [Case.from_json(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    with places(out) as have:
        forks, alone = Forks(), dict[tuple[str, bool], Alone]()
        try:
            for number, (kind, forked, ways, place, draw) in enumerate(plan(options.seed, options.only, list(have))):
                if number < len(cases):
                    continue
                if sum(len(case.hits) for case in cases) >= options.kills:
                    break
                subject = _subject(kind, out, forked)
                server = forks if forked else None
                key = (kind.name, forked)
                if key not in alone:
                    folder = out / "alone" / subject.root.name
                    shutil.rmtree(folder, ignore_errors=True)
                    alone[key] = run_alone(subject, folder, out / "logs/alone.log", server)
                folder = have[place] / f"case-{number}"
                folder.mkdir()
                case = run_case(subject, ways, folder, place, alone[key], out / "logs", draw, server)
                if not case.problems:
                    shutil.rmtree(folder)
                else:
                    shutil.copytree(folder, out / "failed" / folder.name, dirs_exist_ok=True)
                    shutil.rmtree(folder)
                cases.append(case)
                with log.open("a", encoding="utf-8") as file:
                    file.write(case.to_json() + "\n")
                missing = [name for name in (TWO, SMALL) if name not in have]
                (out / "report.md").write_text(markdown(cases, missing), encoding="utf-8")
                (out / "report.json").write_text(json.dumps(counts(cases), indent=1), encoding="utf-8")
                _show(number, case, cases)
        finally:
            forks.close()
    return int(any(case.problems for case in cases))


def _subject(kind: type[Victim], out: Path, forked: bool) -> Victim:
    root = out / "inputs" / f"{kind.__name__}-{'forked' if forked else 'fresh'}"
    subject = kind(root, forked)
    if not root.exists():
        root.mkdir(parents=True)
        subject.write_inputs()
    return subject


def _show(number: int, case: Case, cases: Sequence[Case]) -> None:
    hits = ", ".join(f"{hit.way} at {hit.moment}" for hit in case.hits) or "no hit"
    kills = sum(len(each.hits) for each in cases)
    said = "; ".join(case.problems) or "equal"
    print(f"case {number} {case.subject} on {case.place}: {hits}: {said}; {kills} kills", flush=True)


if __name__ == "__main__":
    sys.exit(main())
