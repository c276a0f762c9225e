"""No command imports a module from the working folder, nor does any process that a command starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment, must_run, tiny_config, tiny_corpus, write_config

_OPTIONAL = ("opt_einsum", "tensorflow", "wandb", "bitsandbytes", "deepspeed", "onnx", "zstandard", "usercustomize")
"""Modules that libraries look for and do without."""


def write_modules(folder: Path) -> None:
    """A module of every name that this process has imported, which leaves a file behind when it is imported.

    Left out are those that Python itself imports for ``-m`` before it runs anything of this package.
    """
    code = "import runpy, sys; runpy.run_module('this'); print(*sys.modules)"
    early = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition(".")[0] for name in sys.modules} - {name.partition(".")[0] for name in early}
    for name in (names | {*_OPTIONAL, "evil"}) - {"lightning_gpt"}:
        (folder / f"{name}.py").write_text(
            f"import os\nos.makedirs({str(folder / 'imported' / name)!r}, exist_ok=True)\n"
        )


def imported(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("imported/*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder full of modules, and a study whose one cell starts every kind of process."""
    folder = tmp_path_factory.mktemp("folder")
    write_modules(folder)
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=1, val_check_interval=1)
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["data"]["num_workers"] = 1
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    write_config(folder / "study.yaml", {"name": "tiny", "config": config, "seeds": [0]})
    return folder


def test_no_process_of_a_study_imports_from_the_working_folder(folder: Path) -> None:
    done = must_run("study", "--config", "study.yaml", "--folder", "out", cwd=folder, fresh=True)
    assert imported(folder) == [], done.stderr


def test_they_are_imported_where_the_working_folder_is_on_the_path(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", "import evil"], cwd=folder, env=environment(), check=True)
    assert "evil" in imported(folder)
