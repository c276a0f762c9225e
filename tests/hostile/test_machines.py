"""Other machines, clocks, users and places: what is promised to the bit stays so; what cannot work ends in a line."""

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile.possible import skip_unless_possible
from tests.processes import (
    environment,
    must_run,
    run_forked,
    scalars,
    tiny_config,
    tiny_corpus,
    write_config,
)
from tests.training.runs import assert_same_series, weights

ROOT = Path(__file__).parents[2]
STEPS = 20
LIKE_ALONE = {"max_steps": STEPS, "val_check_interval": 10}
ANOTHER_USER = 54321
Changes = Mapping[str, str | None]


def surrounded(
    changes: str, *args: str, cwd: Path, env: Mapping[str, str | None] = {}, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``lightning-gpt args`` with ``changes`` as ``tests.hostile.surrounded`` reads them."""
    call = (*changes.split(), "--", *args)
    return run_forked("tests.hostile.surrounded", *call, cwd=cwd, env=env, timeout=timeout)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can read; pytest's are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def alone() -> Iterator[Path]:
    """The folder of a finished run on a machine as it should be, with its config and corpus."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        write_config(folder / "tiny.yaml", tiny_config(tiny_corpus(folder / "corpus.jsonl"), **LIKE_ALONE))
        must_run("fit", "--config", "tiny.yaml", cwd=folder)
        yield folder


def of(folder: Path) -> Path:
    """The run in a folder."""
    return folder / "runs/tiny/version_0"


def before_last(folder: Path) -> str:
    """The checkpoint before the last one, from which five steps are left."""
    return str(of(folder) / "checkpoints/last.previous.ckpt")


def assert_same_run(run: Path, alone: Path) -> None:
    """Every logged value and the last weights are those of the run that was left alone, to the bit."""
    assert_same_series(run, of(alone))
    assert max(step for _, step in scalars(run)) == STEPS
    ours, theirs = weights(run), weights(of(alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


NOWHERE = "/nonexistent/folder"
MACHINES: dict[str, tuple[str, list[str], Changes]] = {
    "one core": ("cores=1", [], {}),
    "two loader workers": ("", ["--data.num_workers", "2"], {}),
    "clock set back while it runs": ("clock=back", [], {}),
    "clock set forward while it runs": ("clock=forward", [], {}),
    "clock that jumps to and fro": ("clock=unsteady", [], {}),
    "clock that stands still": ("clock=stopped", [], {}),
    "clock at 1970": ("clock=unset", [], {}),
    "files that only their owner may read": ("umask=077", [], {}),
    "another user, unknown to the system, without HOME": (f"user={ANOTHER_USER}", [], {"HOME": None, "USER": None}),
    "no folder where the environment names one": (
        "",
        [],
        {"HOME": NOWHERE, "TMPDIR": NOWHERE, "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    ),
    "HOME empty, another time zone": ("", [], {"HOME": "", "MPLCONFIGDIR": None, "TZ": "not a zone"}),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_run_resumed_on_another_machine_is_the_same_to_the_bit(alone: Path, place: Path, machine: str) -> None:
    changes, args, env = MACHINES[machine]
    skip_unless_possible(changes)
    if "user=" in changes:
        os.chown(place, ANOTHER_USER, ANOTHER_USER)
    done = surrounded(changes, "fit", "--ckpt_path", before_last(alone), *args, cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert_same_run(of(place), alone)


def test_read_only_home(alone: Path, place: Path) -> None:
    skip_unless_possible("mount=")
    (place / "home").mkdir()
    changes, env = f"mount=ro:{place / 'home'}", {"HOME": str(place / "home")}
    done = surrounded(changes, "fit", "--ckpt_path", before_last(alone), cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert_same_run(of(place), alone)


def test_optimised_python_with_another_hash_seed(alone: Path, place: Path) -> None:
    """``-OO`` removes assertions and docstrings; the options' help comes from docstrings, their types do not."""
    env = {"PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "7"}
    must_run("fit", "--config", str(alone / "tiny.yaml"), cwd=place, fresh=True, env=env)
    assert_same_run(of(place), alone)


def test_another_patch_of_python(alone: Path, place: Path) -> None:
    minor = ".".join(platform.python_version_tuple()[:2])
    other = f"/usr/bin/python{minor}"
    version = [other, "-c", "import platform; print(platform.python_version())"]
    found = subprocess.run(version, capture_output=True, text=True, check=False).stdout if Path(other).exists() else ""
    if found.strip() in ("", platform.python_version()):
        pytest.skip(f"there is no other Python {minor} here")
    env = environment({"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])})
    call = [other, "-m", "lightning_gpt", "fit", "--ckpt_path", before_last(alone)]
    done = subprocess.run(call, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_run(of(place), alone)


def test_more_threads_change_the_last_bits_and_not_the_data(alone: Path, place: Path) -> None:
    """Two threads add in another order. Everything else is the same: the data, the dropout, the steps."""
    done = surrounded("threads=2", "fit", "--config", str(alone / "tiny.yaml"), cwd=place)
    assert done.returncode == 0, done.stderr
    expected, found = scalars(of(alone)), scalars(of(place))
    assert found.keys() == expected.keys()
    losses = [key for key in expected if key[0] in ("train/loss", "val/loss")]
    assert len(losses) == STEPS + 2
    assert {key: found[key] for key in losses} == pytest.approx({key: expected[key] for key in losses}, rel=1e-5)
    data = [
        torch.load(of(folder) / "checkpoints/last.ckpt", weights_only=True)["TextData"] for folder in (alone, place)
    ]
    assert data[0] == data[1]


# what a name holds cannot hide behind what else it holds; how it begins can
PLACES = ["ün ïcode 日本 a=b,c[d] %e$f {g} quo'te \"#!&*~` new\nline\ttab\\n", "-dash", "~nobody"]


@pytest.mark.parametrize("name", PLACES, ids=ascii)
def test_names_of_folders_and_files(alone: Path, place: Path, name: str) -> None:
    """The working folder, the config, the corpus, the run and the prepared folder have the name, or are below it."""
    below = place / name
    below.mkdir()
    shutil.copy(alone / "corpus.jsonl", below / "corpus.jsonl")
    config = str(write_config(below / "tiny.yaml", tiny_config(Path(name) / "corpus.jsonl", **LIKE_ALONE)))
    must_run("fit", "--config", config, cwd=place)
    assert_same_run(of(place), alone)
    prepared = f"./{name}-prepared"
    must_run("prepare", "--config", config, "--output", prepared, cwd=place)
    write_config(below / "tiny.yaml", tiny_config(below / "corpus.jsonl", **LIKE_ALONE))
    must_run("fit", "--config", config, f"--data.prepared=.{prepared}", "--ckpt_path", before_last(place), cwd=below)
    assert_same_run(of(below), alone)
    must_run("doctor", "--offline", f"--checkpoint={of(below)}/checkpoints/last.ckpt", cwd=below)


def test_a_working_folder_whose_name_is_not_utf_8(alone: Path, place: Path) -> None:
    below = place / os.fsdecode(b"latin-\xfc")
    below.mkdir()
    shutil.copy(alone / "corpus.jsonl", below / "corpus.jsonl")
    write_config(below / "tiny.yaml", tiny_config(Path("corpus.jsonl"), **LIKE_ALONE))
    must_run("fit", "--config", "tiny.yaml", cwd=below)
    ours, theirs = weights(of(below)), weights(of(alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


REFUSED: dict[str, tuple[str, list[str], Changes, int, str]] = {
    "read-only working folder": ("mount=ro:{place}", ["fit", "--config", "{config}"], {}, 1, "Read-only file system"),
    "folder of another user": (
        f"user={ANOTHER_USER}",
        ["fit", "--ckpt_path", "{checkpoint}"],
        {"HOME": None},
        1,
        "'runs': Permission denied",
    ),
    "no shared memory": (
        "mount=size=64k:/dev/shm",
        ["fit", "--config", "{config}", "--data.num_workers", "2"],
        {},
        2,
        "num_workers 2 needs 0.4 MiB of shared memory, but /dev/shm has 0.1 MiB that can be written: use num_workers "
        "0, or enlarge /dev/shm",
    ),
    "read-only shared memory": (
        "mount=ro:/dev/shm",
        ["fit", "--config", "{config}", "--data.num_workers", "1"],
        {},
        2,
        "num_workers 1 needs 0.3 MiB of shared memory, but /dev/shm has 0.0 MiB that can be written",
    ),
    "a home folder that nobody knows": (
        f"user={ANOTHER_USER}",
        [
            "prepare",
            "--config",
            "{config}",
            "--output",
            "p",
            "--data.sources",
            '[{{"class_path": "Files", "init_args": {{"paths": "~/x.txt"}}}}]',
        ],
        {"HOME": None},
        2,
        "data file '~/x.txt': the home folder '~' is not known; give the whole path",
    ),
    "threads that are no number": (
        "",
        ["study", "--config", "{study}"],
        {"OMP_NUM_THREADS": "zwei"},
        2,
        "OMP_NUM_THREADS is 'zwei'; it must be a whole number of at least 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_ends_in_one_line(alone: Path, place: Path, case: str) -> None:
    changes, args, env, status, said = REFUSED[case]
    skip_unless_possible(changes)
    names = {
        "config": alone / "tiny.yaml",
        "checkpoint": before_last(alone),
        "place": place,
        "study": write_config(place / "study.yaml", tiny_study(alone / "corpus.jsonl")),
    }
    done = surrounded(changes.format(**names), *(arg.format(**names) for arg in args), cwd=place, env=env)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert len(last) <= 300


def tiny_study(corpus: Path) -> dict[str, Any]:
    """A study of one cell, with a tokenizer that needs no training."""
    config = tiny_config(corpus)
    del config["name"], config["seed_everything"]
    config["data"]["tokenizer"] = "gpt2"
    return {"name": "tiny", "config": config, "grid": {"model.init_args.n_layer": [1]}, "measure": ["val/loss"]}
