"""The kinds of runs: ``fit`` in one process and in two, ``prepare``, ``study``."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.subject import Moment, Victim, digests, unequal, write_yaml
from lightning_gpt.checkpoint_folder import read_saved
from lightning_gpt.errors import CallError
from lightning_gpt.training.metrics_jsonl import FILE_NAME, Line, read_metrics, scalars_of

STEPS, VALIDATE_EVERY, SAVE_EVERY = 40, 20, 5
_OF_THE_CLOCK = ("train/tokens_per_second", "train/mfu", "layers/share_of_time", "cost/")


def write_corpus(path: Path, documents: int, words: tuple[int, int]) -> None:
    """Write a ``.jsonl`` file of documents of made-up words, the same every time, each with so many words."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(400)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": " ".join(draw.choices(vocabulary, k=draw.randint(*words)))}) + "\n")


def fit_config(corpus: Path, **trainer: Any) -> dict[str, Any]:
    """A small GPT with dropout, a few seconds long, all of whose instruments are on."""
    return {
        "trainer": {
            "max_steps": STEPS,
            "max_epochs": -1,
            "val_check_interval": VALIDATE_EVERY,
            "check_val_every_n_epoch": None,
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "log_every_n_steps": 1,
            **trainer,
        },
        "model": {
            "class_path": "GPTModule",
            "init_args": {"n_layer": 2, "n_head": 2, "dim": 64, "block_size": 32, "dropout": 0.1},
        },
        "data": {
            "tokenizer": 300,
            "batch_size": 4,
            "val_share": 0.1,
            "test_share": 0.1,
            "shuffle_window": 64,
            "sources": [{"class_path": "Files", "init_args": {"paths": str(corpus)}}],
        },
        "checkpoints": {"every_n_steps": SAVE_EVERY},
        "samples": {"max_new_tokens": 4},
    }


class KilledFit(Victim):
    """``fit``; each attempt is a new ``version_N``, resumed from the newest checkpoint of those before."""

    name = "fit"
    has_children = False
    run_folders = ("runs/tiny/version_*",)
    inner_folders = ("checkpoints",)
    trainer: Mapping[str, Any] = {}

    def write_inputs(self) -> None:
        corpus = self.root / "corpus.jsonl"
        write_corpus(corpus, 60, (50, 200))
        write_yaml(self.root / "fit.yaml", {"name": "tiny", "seed_everything": 1, **fit_config(corpus, **self.trainer)})

    def call(self, folder: Path) -> list[str]:
        saved = [run / "checkpoints/last.ckpt" for run in _versions(folder) if _steps_saved(run)]
        resume = ["--ckpt_path", str(saved[-1].relative_to(folder))] if saved else []
        return ["fit", "--config", str(self.root / "fit.yaml"), *resume]

    def moment(self, folder: Path) -> Moment:
        versions = _versions(folder)
        lines = [] if not versions else read_metrics(versions[-1] / FILE_NAME)
        trained = _last_trained(lines)
        if not versions or not trained or trained == _resumed_at(versions[-1]):
            return "start-up"
        if trained == STEPS and _steps_saved(versions[-1]) == STEPS:
            return "exit"
        validated = max((line["step"] for line in lines if line["split"] == "val"), default=0)
        return "validation" if trained % VALIDATE_EVERY == 0 and validated < trained else "step"

    def kept(self, folder: Path) -> Mapping[str, int]:
        """The step of the newest checkpoint that can be read: at least the last due before a logged step."""
        return {"step saved": max((_steps_saved(run) for run in _versions(folder)), default=0)}

    def owed(self, folder: Path, waited: bool) -> Mapping[str, int]:
        """The step that must have been saved, told by what was logged.

        The save of a step has begun before the next step is logged. It is written while the training goes on, and has
        ended for certain when the next save begins, or when the run has ended and ``waited`` for it.
        """
        versions = _versions(folder)
        trained = _last_trained(read_metrics(versions[-1] / FILE_NAME)) if versions else 0
        begun = max(0, trained - 1) // SAVE_EVERY * SAVE_EVERY
        return {"step saved": begun if waited else max(0, begun - SAVE_EVERY)}

    def done(self, folder: Path) -> bool:
        versions = _versions(folder)
        return bool(versions) and _steps_saved(versions[-1]) == STEPS

    def differences(self, folder: Path, alone: Path) -> Iterator[str]:
        ours, theirs = _versions(folder)[-1], _versions(alone)[-1]
        for name in ("last.ckpt", "best.ckpt"):
            a, b = (_content(run / "checkpoints" / name) for run in (ours, theirs))
            yield from unequal(a, b, name)
        yield from unequal(_series(ours), _series(theirs), FILE_NAME)


class KilledPair(KilledFit):
    """``fit`` in two processes on gloo."""

    name = "fit, two processes"
    has_children = True
    trainer = {"devices": 2, "strategy": "ddp"}


class KilledPrepare(Victim):
    """``prepare`` with two workers, three parts; the finished folder is equal byte for byte."""

    name = "prepare"
    run_folders = ("out.partial",)

    def write_inputs(self) -> None:
        corpus = self.root / "corpus.jsonl"
        write_corpus(corpus, 2 * 4096 + 500, (6, 9))
        source = {"class_path": "Files", "init_args": {"paths": str(corpus)}}
        data = {"tokenizer": 300, "val_share": 0.1, "test_share": 0.1, "sources": [source]}
        write_yaml(self.root / "prepare.yaml", {"data": data})

    def call(self, folder: Path) -> list[str]:
        config = str(self.root / "prepare.yaml")
        return ["prepare", "--config", config, "--output", "out", "--jobs", "2", "--remove_duplicates", "true"]

    def moment(self, folder: Path) -> Moment:
        if (folder / "out").exists():
            return "exit"
        if not list((folder / "out.partial").glob("tokenizer/*.tiktoken")):
            return "start-up"
        return "step" if len(list((folder / "out.partial").glob("*/part-*.json"))) < 3 else "finishing"

    def kept(self, folder: Path) -> Mapping[str, int]:
        """Every complete part."""
        parts = [*folder.glob("out.partial/*/part-*.json"), *folder.glob("out/*/part-*.json")]
        return {path.name: 1 for path in parts}

    def done(self, folder: Path) -> bool:
        return (folder / "out").exists()

    def differences(self, folder: Path, alone: Path) -> Iterator[str]:
        yield from unequal(digests(folder / "out"), digests(alone / "out"), "out")
        if (folder / "out.partial").exists():
            yield "out.partial is left"


class KilledStudy(Victim):
    """``study`` of a few cells, one at a time, each a process of its own; tables and curves are equal."""

    name = "study"
    run_folders = ("out/cells/*/version_*",)
    inner_folders = ("checkpoints",)
    depths: Sequence[int] = (1, 2)
    """The number of layers of each cell."""

    def write_inputs(self) -> None:
        corpus = self.root / "corpus.jsonl"
        write_corpus(corpus, 60, (50, 200))
        config = fit_config(corpus) | {"diagnostics": {"enabled": False}, "samples": {"prompts": []}}
        grid = {"model.init_args.n_layer": list(self.depths)}
        study = {"name": "tiny", "config": config, "grid": grid, "measure": ["val/loss", "cost/parameters"]}
        write_yaml(self.root / "study.yaml", study)

    def call(self, folder: Path) -> list[str]:
        return ["study", "--config", str(self.root / "study.yaml"), "--folder", "out"]

    def moment(self, folder: Path) -> Moment:
        cells = list(folder.glob("out/cells/*/result.json"))
        if len(cells) == len(self.depths):
            return "exit"
        logged = [
            file for file in folder.glob(f"out/cells/*/version_*/{FILE_NAME}") if _last_trained(read_metrics(file))
        ]
        return "step" if len({file.parent.parent for file in logged}) > len(cells) else "start-up"

    def kept(self, folder: Path) -> Mapping[str, int]:
        """Each cell's newest checkpoint, and its result."""
        found = {}
        for cell in folder.glob("out/cells/*"):
            found[f"{cell.name}: step saved"] = max((_steps_saved(run) for run in cell.glob("version_*")), default=0)
            found[f"{cell.name}: result"] = int((cell / "result.json").exists())
        return found

    def done(self, folder: Path) -> bool:
        reported = folder / "out/results.csv"
        return reported.exists() and reported.read_text("utf-8").count("finished") == len(self.depths)

    def differences(self, folder: Path, alone: Path) -> Iterator[str]:
        ours, theirs = ((place / "out/results.csv").read_text("utf-8") for place in (folder, alone))
        yield from unequal(ours, theirs, "results.csv")
        a, b = (_cells(place / "out/results.json") for place in (folder, alone))
        yield from unequal(a, b, "results.json")


SUBJECTS = (KilledFit, KilledPair, KilledPrepare, KilledStudy)


def _versions(folder: Path) -> list[Path]:
    """The attempts in ``folder``, oldest first."""
    found = folder.glob("runs/tiny/version_*")
    return sorted(found, key=lambda run: int(run.name.removeprefix("version_")))


def _steps_saved(run: Path) -> int:
    """The step of the checkpoint that ``fit --ckpt_path`` would resume the run from; 0 if there is none."""
    for name in ("last.ckpt", "last.previous.ckpt"):
        try:
            return int(read_saved(run / "checkpoints" / name)["global_step"])
        except (CallError, OSError):
            continue
    return 0


def _last_trained(lines: list[Line]) -> int:
    return max((line["step"] for line in lines if line["split"] == "train"), default=0)


def _resumed_at(run: Path) -> int:
    """The step that a run was resumed at; 0 if it was not."""
    config = run / "config.yaml"
    found = re.search(r"^ckpt_path: (.+ckpt)$", config.read_text("utf-8"), re.M) if config.exists() else None
    if found is None:
        return 0
    return _steps_saved(run.parents[2] / Path(found[1]).parents[1])


def _content(checkpoint: Path) -> Any:
    """What a checkpoint holds, with the names of run folders made equal."""

    def named_alike(value: Any) -> Any:
        if isinstance(value, dict):
            return {named_alike(key): named_alike(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [named_alike(each) for each in value]
        return re.sub(r".*version_\d+", "version_N", value) if isinstance(value, str) else value

    return named_alike(read_saved(checkpoint)) if checkpoint.exists() else "missing"


def _series(run: Path) -> dict[str, float]:
    """Every scalar that a run has logged, by split, tag and step, without those of the clock and the memory."""
    return {
        f"{line['split']} {tag} {line['step']}": value
        for line in read_metrics(run / FILE_NAME)
        for tag, value in scalars_of(line).items()
        if not tag.startswith(_OF_THE_CLOCK)
    }


def _cells(results: Path) -> list[Any]:
    cells = json.loads(results.read_text("utf-8"))["cells"]
    return [
        {tag: points for tag, points in cell["curves"].items() if not tag.startswith(_OF_THE_CLOCK)} for cell in cells
    ]
