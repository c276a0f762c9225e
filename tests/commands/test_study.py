"""``lightning-gpt study`` as it is typed: real runs, killed, stopped, failing, alone and in a report."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gpt.commands import study as command
from lightning_gpt.errors import CallError
from lightning_gpt.studies.run.process import CellProcess, latest_checkpoint, lock_cell
from lightning_gpt.studies.run.result import cell_folder, read_result
from lightning_gpt.studies.run.runner import share_of_machine
from lightning_gpt.studies.run.starter import FreshStarter
from lightning_gpt.studies.spec.study_file import read_study
from tests.processes import must_run, run_command, start_command, tiny_config, tiny_corpus, write_config
from tests.studies.helpers import LAYERS

STEPS = 80


def write_study(folder: Path, **over: Any) -> Path:
    """A study of two depths on a tiny corpus, each a few seconds long."""
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, val_check_interval=STEPS // 2)
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    del config["name"], config["seed_everything"]
    content = {"name": "tiny", "config": config, "grid": {LAYERS: [1, 2]}, "measure": ["val/loss", "cost/parameters"]}
    return write_config(folder / "tiny.yaml", content | over)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose study ran to its end, both cells at a time."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    must_run("study", "--config", "tiny.yaml", "--folder", "out", "--jobs", "2", cwd=folder, timeout=600, fresh=True)
    return folder


def cells(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["cells"]
    return found


def test_every_cell_ran_and_is_reported(alone: Path) -> None:
    out = alone / "out"
    first, second = cells(out)
    assert (first["cell"], second["cell"]) == ("n_layer=1,seed=0", "n_layer=2,seed=0")
    for cell in (first, second):
        assert cell["status"] == "finished"
        assert [step for step, _ in cell["curves"]["val/loss"]] == [STEPS // 2, STEPS]
        assert cell["values"]["val/loss"] == pytest.approx(cell["curves"]["val/loss"][-1][1])
        assert cell["values"]["initial/loss"] == pytest.approx(5.7038, rel=0.01)  # ln 300
        assert cell["values"]["cost/step_seconds"] > 0
        assert cell["values"]["cost/peak_memory_mb"] > 0
        assert cell["environment"]["packages"]["torch"]
    block = 12 * 32 * 32 + 13 * 32
    assert second["values"]["cost/parameters"] - first["values"]["cost/parameters"] == block
    for name in ("report.html", "report.md", "tables.tex", "results.csv"):
        assert "layer=2,seed=0" in (out / name).read_text()
    # one vocabulary, trained once and used by both
    (vocabulary,) = (out / "vocabularies").rglob("*.tiktoken")
    assert str(vocabulary) in next((out / "cells").glob("n_layer=1*/config.yaml")).read_text()


def test_the_studys_own_file_gives_the_same_report(alone: Path) -> None:
    out = alone / "out"
    before = (out / "report.md").read_text()
    must_run("study", "--config", "out/study.yaml", "--folder", "out", "--report_only", cwd=alone)
    assert (out / "report.md").read_text() == before
    assert json.loads((out / "environment.json").read_text()) == [cells(out)[0]["environment"]]


def test_a_finished_study_runs_nothing_again(alone: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (alone / "out/cells").rglob("result.json")}
    done = must_run("study", "--config", "tiny.yaml", "--folder", "out", cwd=alone)
    assert "2 cells, 2 already done" in done.stderr
    assert "started" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_cell_that_was_stopped_after_its_last_step_has_its_figures(alone: Path) -> None:
    """Resumed, it has nothing left to train, and starts no run."""
    before = cells(alone / "out")[0]
    (result,) = (alone / "out/cells").glob("n_layer=1*/result.json")
    result.unlink()
    done = must_run("study", "--config", "tiny.yaml", "--folder", "out", cwd=alone)
    assert "cell 0 n_layer=1,seed=0: resumed from" in done.stderr
    assert "nothing to train" in result.with_name("fit.log").read_text()
    after = cells(alone / "out")[0]
    assert after["values"] == before["values"]
    assert after["curves"] == before["curves"]


def test_report_only(alone: Path) -> None:
    (alone / "out/report.md").unlink()
    must_run("study", "--config", "tiny.yaml", "--folder", "out", "--report_only", cwd=alone)
    assert (alone / "out/report.md").is_file()
    done = run_command("study", "--config", "tiny.yaml", "--folder", "nothing", "--report_only", cwd=alone)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no cell of tiny is finished in nothing:" in done.stderr


def wait_for_checkpoint(folder: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while latest_checkpoint(folder) is None:
        assert time.monotonic() < end, f"no checkpoint in {folder}"
        time.sleep(0.01)


def wait_until_ended(folder: Path) -> None:
    """Wait until no process works in a cell's folder any more: each holds its lock as long as it lives."""
    end = time.monotonic() + 60
    while (lock := lock_cell(folder)) is None:
        assert time.monotonic() < end, "the cell outlived its study"
        time.sleep(0.1)
    os.close(lock)


def test_stopped_and_killed_study_goes_on(alone: Path, tmp_path: Path) -> None:
    """Stopped with Ctrl-C in its first cell, and killed in its second, it is the study that was left alone."""
    study = read_study(write_study(tmp_path), None)
    call = ("study", "--config", "tiny.yaml", "--folder", "out")
    for number, how in enumerate((signal.SIGINT, signal.SIGKILL)):
        process = start_command(*call, cwd=tmp_path)
        hit = cell_folder(tmp_path / "out", study.cells[number])
        wait_for_checkpoint(hit)
        process.send_signal(how)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), said
        wait_until_ended(hit)
        assert not (hit / "result.json").exists()

    done = must_run(*call, cwd=tmp_path, timeout=600)
    assert "2 cells, 1 already done" in done.stderr
    assert re.search(r"cell 1 n_layer=2,seed=0: resumed from .*version_0/checkpoints/last.ckpt", done.stderr)
    ours, theirs = cells(tmp_path / "out"), cells(alone / "out")
    for a, b in zip(ours, theirs, strict=True):
        assert a["curves"]["val/loss"] == b["curves"]["val/loss"]
        assert a["curves"]["train/loss"] == b["curves"]["train/loss"]


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_study_of_one_cell(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A study whose cell has saved a checkpoint, and the folder of that cell."""
    study = read_study(write_study(folder, grid={LAYERS: [1]}), None)
    process = start_command("study", "--config", "tiny.yaml", "--folder", "out", cwd=folder)
    cell = cell_folder(folder / "out", study.cells[0])
    wait_for_checkpoint(cell)
    return process, cell


@pytest.mark.skipif(sys.platform != "linux", reason="cells are forks on Linux only")
def test_the_process_that_starts_the_cells_is_killed(tmp_path: Path) -> None:
    """Its cell saves its state, and the study ends with a line."""
    process, folder = start_study_of_one_cell(tmp_path)
    (starter,) = (pid for pid in children_of(process.pid) if children_of(pid))
    assert len(list(Path(f"/proc/{starter}/task").iterdir())) == 1, "a fork has no other thread than the one that forks"
    os.kill(starter, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: the process that starts the cells has ended")
    wait_until_ended(folder)
    assert "stopped" in (folder / "fit.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed in /proc")
def test_sigterm_for_every_process_as_a_service_manager_sends_it(tmp_path: Path) -> None:
    process, folder = start_study_of_one_cell(tmp_path)
    started = children_of(process.pid)
    for pid in (*(cell for each in started for cell in children_of(each)), *started, process.pid):
        os.kill(pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; 0 of 1 cells are done; rerun the same command to resume"
    wait_until_ended(folder)
    assert "is saved in" in (folder / "fit.log").read_text()


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    variants = {
        "fine": {"trainer.max_steps": 4, "trainer.val_check_interval": 2},
        "too big": {"data.batch_size": 40000},
    }
    write_study(tmp_path, variants=variants, grid={LAYERS: [1]}, report=["table"])
    done = run_command("study", "--config", "tiny.yaml", "--folder", "out", cwd=tmp_path, timeout=600)
    assert done.returncode == 1
    assert "cell 1 variant=too big,n_layer=1,seed=0: failed: the corpus has" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 cells failed (variant=too big,n_layer=1,seed=0)")
    assert "one optimizer step takes 40000" in (tmp_path / "out/report.md").read_text()
    assert [cell["status"] for cell in cells(tmp_path / "out")] == ["finished", "failed"]


def test_slurm_script_runs_single_cells(alone: Path, tmp_path: Path) -> None:
    script = must_run("study", "--config", "tiny.yaml", "--folder", "array", "--slurm", cwd=alone).stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "#SBATCH --array=0-1\n" in script
    line = next(line for line in script.splitlines() if line.startswith("exec "))
    args = shlex.split(line)
    assert args[-2:] == ["--cell", "$SLURM_ARRAY_TASK_ID"]

    job = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash"], input=script, env=job, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    must_run("study", "--config", "tiny.yaml", "--folder", "array", "--report_only", cwd=alone)
    first, second = cells(alone / "array")
    assert (first["status"], second["status"]) == ("missing", "finished")
    assert second["values"]["val/loss"] == cells(alone / "out")[1]["values"]["val/loss"]


@pytest.mark.parametrize(
    ("over", "args", "message"),
    [
        ({"grid": {"model.init_args.n_layr": [1]}}, (), r"cell 0, n_layr=1,seed=0: unknown key 'n_layr'.*n_layer"),
        ({"grid": {"model.init_args.n_head": [2, 3]}}, (), r"cell 1, n_head=3,seed=0: dim 32 is not divisible by n_h"),
        ({"report": [{"layers": {"diagnostic": "cosine"}}]}, (), r"unknown diagnostic 'cosine'; known are token_cos"),
        ({"grid": {LAYERS: []}}, (), r"n_layer is an empty axis"),
        ({}, ("--preset", "cpu"), r"no preset 'cpu'; it has none"),
        ({}, ("--jobs", "0"), r"jobs is 0; it must be a whole number from 1 to 1,024"),
        ({}, ("--cell", "2"), r"cell is 2; this study has 2 \(allowed: 0 to 1\)"),
        ({}, ("--slurm", "--report_only"), r"cannot be combined"),
    ],
)
def test_wrong_call_is_refused_before_anything_runs(
    over: dict[str, Any], args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, **over)
    with pytest.raises(CallError, match=message):
        command.run(["--config", "tiny.yaml", "--folder", "out", *args])
    assert not (tmp_path / "out/cells").exists()


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    from lightning_gpt.errors import WorkError
    from lightning_gpt.studies.run.runner import exclusive, shared

    with shared(tmp_path), shared(tmp_path), pytest.raises(WorkError, match="another study is running in"):
        exclusive(tmp_path).__enter__()
    with exclusive(tmp_path), pytest.raises(WorkError, match="another study is running in"):
        shared(tmp_path).__enter__()


def test_machine_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    assert share_of_machine(1, 2) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1,5"}
    assert share_of_machine(5, 6) == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert share_of_machine(0, 1) == {"OMP_NUM_THREADS": "8"}


def test_progress_is_of_the_metrics_and_not_of_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that prints no progress shows how far it is all the same."""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    content = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    content["config"]["trainer"]["enable_progress_bar"] = False
    write_config(tmp_path / "tiny.yaml", content)
    made = read_study(tmp_path / "tiny.yaml", None)
    folder = cell_folder(tmp_path / "out", made.cells[0])
    lock = lock_cell(folder)
    assert lock is not None
    cell = made.cells[0]
    environment = {"OMP_NUM_THREADS": "1"}
    process = CellProcess(cell, folder, lock, cell.config, environment, tests=False, starter=FreshStarter())
    shown = []
    end = time.monotonic() + 300
    while not process.poll():
        assert time.monotonic() < end
        shown.append(process.progress())
        time.sleep(0.01)
    shown.append(process.progress())
    assert (
        "loss" not in (folder / "fit.log").read_text().split("initial validation loss")[1].split("validation perpl")[0]
    )
    assert [each.step for each in shown] == sorted(each.step for each in shown)
    assert len({each.step for each in shown}) > 3
    assert (shown[0].step, shown[0].loss, shown[0].share) == (0, None, 0.0)
    assert (shown[-1].step, shown[-1].steps, shown[-1].share) == (STEPS, STEPS, 1.0)
    losses = dict(read_result(made.cells[0], folder).curves["train/loss"])
    assert shown[-1].loss == losses[STEPS]


def test_figures_of_the_test_split(tmp_path: Path) -> None:
    measures = ["test/loss", "test/perplexity", "val/loss"]
    trainer = {"trainer.max_steps": 4, "trainer.val_check_interval": 2}
    options: dict[str, Any] = {"grid": {LAYERS: [1]}, "variants": {"short": trainer}, "report": ["table"]}
    command = ("study", "--config", "tiny.yaml", "--folder", "out")
    write_study(tmp_path, **options, measure=["val/loss"])
    must_run(*command, cwd=tmp_path, timeout=600)
    write_study(tmp_path, **options, measure=measures)  # asked for later: the trained cell is tested, not trained again
    must_run(*command, cwd=tmp_path, timeout=600)
    (cell,) = cells(tmp_path / "out")
    assert "nothing to train" in next((tmp_path / "out/cells").glob("*/fit.log")).read_text()
    assert cell["values"]["test/perplexity"] == pytest.approx(math.exp(cell["values"]["test/loss"]))
    printed = next((tmp_path / "out/cells").glob("*/test.log")).read_text()
    assert f"test/loss {cell['values']['test/loss']:.6f}\n" in printed
    assert [step for step, _ in cell["curves"]["val/loss"]] == [2, 4]
    assert "test/loss" not in cell["curves"]
