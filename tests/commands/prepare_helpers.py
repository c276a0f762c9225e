"""Small corpora, and the command ``prepare`` without its worker processes."""

import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt import cli
from lightning_gpt.commands import prepare as command
from lightning_gpt.data.prepare import parts, workers
from lightning_gpt.data.prepare.parts import PartWriter
from tests.processes import write_config

SHARES = {"val_share": 0.1, "test_share": 0.1, "split_by": "documents"}


class InThisProcess:
    """Stands for the pool of processes: the work is done at once, in this one."""

    def __init__(self, jobs: int, context: object, start: object, initial: tuple[PartWriter]) -> None:
        workers._writer = initial[0]

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        return


def prepare_here(*args: str) -> None:
    """Prepare without processes, which take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        command.run(list(args))


def prepare_in_short_parts(folder: Path, data: dict[str, Any]) -> None:
    """Prepare a data section into ``folder/corpus``, in parts of 16 documents."""
    write_config(folder / "config.yaml", {"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_DOCUMENTS", 16)
        prepare_here("--config", str(folder / "config.yaml"), "--output", str(folder / "corpus"))


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_texts(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def words(count: int, draw: random.Random) -> str:
    return " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(400)}" for _ in range(count))


def config_of(path: Path, *corpora: str, **data: Any) -> str:
    sources = [{"class_path": "Files", "init_args": {"paths": name, "name": Path(name).stem}} for name in corpora]
    write_config(path, {"data": {"tokenizer": 300, "sources": sources, **SHARES, **data}})
    return path.name


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def main_here(monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str]:
    """The exit status of ``lightning-gpt args`` and the last line that it prints, in this process."""
    said = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(sys, "argv", ["lightning-gpt", *args])
        patch.setattr(sys, "stdout", said)
        patch.setattr(sys, "stderr", said)
        status = cli.main()
    sys.stderr.write(said.getvalue())  # for those who look at all of it
    return status, (said.getvalue().splitlines() or [""])[-1]
