"""Whether long runs stay flat: memory, open files, threads, and files on the disk, against steps, requests and cells.

    python -m benchmarks.long_runs --out FOLDER

Watches three processes from outside: 20,000 optimizer steps of a small ``fit`` with all instruments on; 2,000 requests
of unequal lengths to one loaded model; a ``study`` of 100 cells. Writes the samples as they are taken, and a report
with the slope of each quantity and its interval. What grows by design, such as ``metrics.jsonl``, must grow by the same
amount at every step. The exit status is 1 if anything else grows. In a run where nothing grows, that happens by chance
at most once in 1,000 reports.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from benchmarks.chaos.subjects import fit_config, write_corpus
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.inference import prompt_ids, stream_text
from lightning_gpt.models.decoding.sampling import Sampling

WARM_UP = 0.25
"""The share of a run that is left out at its start, where caches fill."""
BLOCKS = 10
# Student's t of BLOCKS − 2 degrees of freedom
_T_INTERVAL = 2.306  # at 97.5 %: a 95 % interval, to read
_T_VERDICT = 6.442  # at 1 − 1e-4: with up to 10 quantities, a report is wrong at most once in 1,000
MATTERS = {"memory, KB": 100.0}
"""How much a quantity must grow in the watched part of a run to matter; 1, such as one open file, where not said."""
_UNEVEN = 0.01  # what grows by design must come to grow faster by this share to matter
_SAMPLES = 400

Sample = dict[str, float]
Kind = Literal["level", "growth"]


@dataclass(frozen=True)
class Slope:
    """A straight line through the 10 blocks of a run after its warm-up, by least squares.

    Args:
        slope: Its slope per 1,000 units of progress.
        error: The standard error of the slope.
        mean: The mean of the blocks.
        matters: The smallest slope that matters.
    """

    slope: float
    error: float
    mean: float
    matters: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the slope."""
        return _T_INTERVAL * self.error

    @property
    def least_seen(self) -> float:
        """The smallest slope that is called growth."""
        return max(_T_VERDICT * self.error, self.matters)

    @property
    def grows(self) -> bool:
        """Whether it grows by more than chance explains, and by enough to matter."""
        return self.slope > self.least_seen


def trend(progress: Sequence[float], values: Sequence[float], kind: Kind, matters: float = 1.0) -> Slope | None:
    """The trend of a quantity; None for a run too short to tell.

    What leaks stays, so a level is judged by the smallest value of each block. A file that is open for a moment, or a
    buffer, is in some samples and not in others; in a block's mean it would look like a part of a file.

    Args:
        progress: Steps, requests or cells at each sample, ascending.
        values: The quantity at each sample.
        kind: Of a ``level`` its values may not grow; of a ``growth`` its growth per unit of progress may not.
        matters: The growth that matters: of a level in its own unit, of a ``growth`` as a share of its mean.
    """
    first = progress[0] + WARM_UP * (progress[-1] - progress[0]) if progress else 0.0
    points = [(at, value) for at, value in zip(progress, values, strict=True) if at >= first]
    if len(points) < 2 * BLOCKS:
        return None
    blocks = [np.asarray(block) for block in np.array_split(np.asarray(points, dtype=np.float64), BLOCKS)]
    if kind == "level":
        x, y = np.array([block[:, 0].mean() for block in blocks]), np.array([block[:, 1].min() for block in blocks])
    else:
        ends = np.array([points[0], *(block[-1] for block in blocks)])
        x, y = (ends[1:, 0] + ends[:-1, 0]) / 2, np.diff(ends[:, 1]) / np.diff(ends[:, 0])
        matters *= float(y.mean())
    from_mean = x - x.mean()
    slope = float(from_mean @ y / (from_mean @ from_mean))
    residual = y - y.mean() - slope * from_mean
    error = math.sqrt(float(residual @ residual) / (len(x) - 2) / float(from_mean @ from_mean))
    return Slope(1000 * slope, 1000 * error, float(y.mean()), 1000 * matters / (points[-1][0] - points[0][0]))


class Watched(ABC):
    """A process to watch.

    Args:
        folder: Its folder; its temporary files are in ``folder/tmp``.
        total: Its steps, requests or cells.
    """

    name: str
    unit: str
    grows_by_design: Sequence[str] = ()

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.total = total

    @abstractmethod
    def command(self) -> list[str]:
        """Write its inputs; returns the command to start."""

    @abstractmethod
    def progress(self) -> int:
        """How many steps, requests or cells are done."""

    def sizes(self) -> Mapping[str, float]:
        """Quantities of its own."""
        return {}

    def kind(self, quantity: str) -> Kind:
        """Whether the quantity is to stay level, or to grow evenly."""
        return "growth" if quantity in self.grows_by_design else "level"

    def trend(self, quantity: str, progress: Sequence[float], values: Sequence[float]) -> Slope | None:
        """The trend of a quantity; None for a run too short to tell."""
        kind = self.kind(quantity)
        return trend(progress, values, kind, MATTERS.get(quantity, 1.0) if kind == "level" else _UNEVEN)


class LongFit(Watched):
    """``fit`` with logging, validation, checkpoints, diagnostics and samples on."""

    name, unit = "fit", "step"
    grows_by_design = ("metrics.jsonl, bytes", "events, bytes", "layers.json, bytes")

    def command(self) -> list[str]:
        corpus, config = self.folder / "corpus.jsonl", self.folder / "fit.yaml"
        write_corpus(corpus, 60, (50, 200))
        often, log = max(50, self.total // 100), max(1, min(10, self.total // 100))
        content = fit_config(corpus, max_steps=self.total, val_check_interval=often, log_every_n_steps=log)
        content["checkpoints"] = {"every_n_steps": often}
        config.write_text(yaml.safe_dump({"name": "long", "seed_everything": 1, **content}), encoding="utf-8")
        return [sys.executable, "-m", "lightning_gpt", "fit", "--config", str(config)]

    def progress(self) -> int:
        try:
            with (self.run / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-2])["step"]) if len(lines) > 2 else 0

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.folder / "runs/long/version_0"

    def sizes(self) -> Mapping[str, float]:
        events = sum(file.stat().st_size for file in self.run.glob("events.*"))
        sizes = {"metrics.jsonl, bytes": _size(self.run / "metrics.jsonl"), "events, bytes": events}
        return {**sizes, "layers.json, bytes": _size(self.run / "layers.json")}


class ManyRequests(Watched):
    """Continuations of unequal lengths, one after another, from one loaded model.

    Args:
        folder: Its folder.
        total: Its requests.
        checkpoint: That of the model; None trains one for 50 steps.
    """

    name, unit = "requests", "request"

    def __init__(self, folder: Path, total: int, checkpoint: Path | None = None) -> None:
        super().__init__(folder, total)
        self._checkpoint = checkpoint

    def command(self) -> list[str]:
        checkpoint = self._checkpoint
        if checkpoint is None:
            short = LongFit(self.folder, 50)
            subprocess.run(short.command(), cwd=self.folder, check=True, capture_output=True)
            checkpoint = short.run / "checkpoints/last.ckpt"
        return [sys.executable, "-m", "benchmarks.long_runs", "--serve", str(checkpoint), "--requests", str(self.total)]

    def progress(self) -> int:
        return int(_size(self.folder / "answered"))

    @staticmethod
    def serve(checkpoint: Path, requests: int) -> None:
        """Answer requests; the file ``answered`` grows by a byte with each."""
        read, draw = Checkpoint.read(str(checkpoint)), random.Random(0)
        model, tokenizer = read.build(), read.tokenizer()
        vocabulary = "abcdefghij "
        with Path("answered").open("ab", buffering=0) as answered:
            for number in range(requests):
                prompt = "".join(draw.choices(vocabulary, k=draw.randint(0, 20)))
                sampling = Sampling(temperature=draw.choice([0.0, 0.8, 1.0]), top_k=draw.choice([None, 50]))
                ids = prompt_ids(model, tokenizer, prompt)
                "".join(stream_text(model, tokenizer, ids, draw.randint(1, 60), sampling, seed=number))
                answered.write(b".")


class LongStudy(Watched):
    """The process of a study, which starts each cell as a process of its own."""

    name, unit = "study", "cell"
    grows_by_design = ("files in its folder",)

    def command(self) -> list[str]:
        corpus, config = self.folder / "corpus.jsonl", self.folder / "study.yaml"
        write_corpus(corpus, 60, (50, 200))
        run = fit_config(corpus, max_steps=4, val_check_interval=2)
        run |= {"diagnostics": {"enabled": False}, "samples": {"prompts": []}}
        rates = [round(0.001 * (1 + number), 3) for number in range(self.total)]
        grid = {"model.init_args.optimization.lr": rates}
        study = {"name": "long", "config": run, "grid": grid, "measure": ["val/loss"], "report": ["table"]}
        config.write_text(yaml.safe_dump(study), encoding="utf-8")
        return [sys.executable, "-m", "lightning_gpt", "study", "--config", str(config), "--folder", "out"]

    def progress(self) -> int:
        return len(list(self.folder.glob("out/cells/*/result.json")))


SUBJECTS: tuple[type[Watched], ...] = (LongFit, ManyRequests, LongStudy)


def watch(subject: Watched, seconds: float = 0.05, start: Callable[..., Any] = subprocess.Popen) -> Iterator[Sample]:
    """Start a subject's process and sample it, about 400 times, until it has ended.

    Args:
        subject: What to watch.
        seconds: The shortest time between two samples.
        start: What starts the process, called as ``subprocess.Popen`` is.

    Raises:
        RuntimeError: It failed.
    """
    temporary = subject.folder / "tmp"
    temporary.mkdir(parents=True)
    command = subject.command()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with (subject.folder / "output").open("wb") as output:
        process = start(command, cwd=subject.folder, env=environment, stdout=output, stderr=output)
    try:
        step, due = max(1, subject.total // _SAMPLES), 1
        while process.poll() is None:
            at = subject.progress()
            if at >= due:
                due = at + step
                with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                    sample = {"at": at, **_of_process(process.pid), **_of_folder(subject), **subject.sizes()}
                    if subject.progress() < subject.total:  # a process that ends closes what it has kept open
                        yield sample
            time.sleep(seconds)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{subject.name} ended with {process.returncode}: {subject.folder / 'output'}")


def _of_process(pid: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    counts = {name: len(os.listdir(f"/proc/{pid}/{place}")) for name, place in _COUNTS.items()}
    return {"memory, KB": pages * os.sysconf("SC_PAGE_SIZE") / 1024, **counts}


_COUNTS = {"open files": "fd", "threads": "task"}


def _of_folder(subject: Watched) -> Sample:
    counts = {"files in its folder": 0, "files in TMPDIR": 0}
    for place, _, names in os.walk(subject.folder):
        in_temporary = Path(place).is_relative_to(subject.folder / "tmp")
        counts["files in TMPDIR" if in_temporary else "files in its folder"] += len(names)
    return dict(counts)


def _size(file: Path) -> float:
    return file.stat().st_size if file.exists() else 0


def trends(subject: Watched, samples: Sequence[Sample]) -> dict[str, Slope]:
    """The trend of every quantity that was sampled, by name; none of a run too short to tell."""
    progress = [sample["at"] for sample in samples]
    names = [name for name in samples[0] if name != "at"] if samples else []
    found = {name: subject.trend(name, progress, [sample[name] for sample in samples]) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def report(subject: Watched, samples: Sequence[Sample]) -> str:
    """A section with a row per quantity."""
    last = int(samples[-1]["at"]) if samples else 0
    lines = [f"## {subject.name}: {last:,} of {subject.total:,} {subject.unit}s, {len(samples)} samples", ""]
    lines += [
        f"| quantity | mean | slope per 1,000 {subject.unit}s | smallest slope seen | verdict |",
        "| --- " * 5 + "|",
    ]
    for name, found in trends(subject, samples).items():
        growth = subject.kind(name) == "growth"
        title = f"growth of {name} per {subject.unit}" if growth else name
        slope = f"{found.slope:+.4g} ± {found.half_width:.2g}"
        verdict = "grows" if found.grows else ("even" if growth else "flat")
        lines.append(f"| {title} | {found.mean:,.6g} | {slope} | {found.least_seen:.2g} | {verdict} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Parse the flags, watch the subjects and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=20_000, help="optimizer steps")
    parser.add_argument("--requests", type=int, default=2_000, help="requests")
    parser.add_argument("--study", type=int, default=100, help="cells; 0 leaves the study out, as for the others")
    parser.add_argument("--out", type=Path, help="folder for samples and report; it must not hold an earlier run")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        ManyRequests.serve(options.serve, options.requests)
        return 0
    if options.out is None:
        parser.error("--out is missing")
    grows = False
    for kind in SUBJECTS:
        total = getattr(options, kind.name)
        if total:
            out = options.out.resolve()
            subject, samples = kind(out / kind.name, total), list[Sample]()
            for sample in watch(subject):
                samples.append(sample)
                with (out / f"{kind.name}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(sample) + "\n")
                (out / f"{kind.name}.md").write_text(report(subject, samples), encoding="utf-8")
            print(report(subject, samples), flush=True)
            grows = grows or any(found.grows for found in trends(subject, samples).values())
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
