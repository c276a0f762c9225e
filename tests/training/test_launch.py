"""Runs that torchrun starts: killed, hung, stopped, started differently, and started again."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.checkpoint_folder import is_folder, read_saved
from lightning_gpt.commands.run_folder import LAUNCH_FILE, started_before
from lightning_gpt.commands.train import _FIRST_PROCESS
from lightning_gpt.launch import Launch
from tests.processes import (
    environment,
    must_run,
    run_command,
    run_forked,
    scalars,
    tiny_config,
    tiny_corpus,
    write_config,
)
from tests.training import hanging, launched

STEPS, ROWS = 24, 8
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TROUBLE = """
import os, signal, time
from lightning.pytorch.callbacks import Callback

class Trouble(Callback):
    def once(self, what):
        if os.path.exists(what):
            return False
        open(what, "w").close()
        return True

    def on_train_batch_start(self, trainer, *args):
        what, step = os.environ["TROUBLE"], trainer.global_step
        if what == "process" and step == 18:
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.global_rank != 1:
            return
        if step == 13 and what == "node":
            os.kill(os.getppid(), signal.SIGKILL)
        if step == 13 and self.once("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 17 and self.once("hung"):
            self.read_data()

    def read_data(self):
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    quiet = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, strategy="ddp", **quiet)
    del content["trainer"]["devices"]
    content["model"]["init_args"]["dropout"] = 0.0
    content["data"]["global_batch"] = ROWS
    content |= {"diagnostics": {"enabled": False}}
    (folder / "trouble.py").write_text(TROUBLE)
    return write_config(folder / "tiny.yaml", content)


@pytest.fixture(scope="module")
def alone(config: Path) -> dict[tuple[str, int], float]:
    """The figures of one process."""
    one = ("--trainer.devices", "1", "--trainer.strategy", "auto")
    must_run("fit", "--config", str(config), *one, cwd=config.parent)
    return scalars(config.parent / "runs/tiny/version_0")


def with_trouble(config: Path) -> tuple[str, ...]:
    """The call of a run that comes to harm."""
    trusted = ("--trust", str(config.parent / "trouble.py"), "--trainer.callbacks+=trouble.Trouble")
    return ("fit", "--config", str(config), *trusted, "--heartbeat.limit", "8")


def launch(
    config: Path, nodes: int, *options: str, cwd: Path, trouble: str, layout: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run fit under torchrun's agent, one for each node."""
    args = (str(nodes), *options, "--max-restarts", "2", "--", *with_trouble(config), *layout)
    return run_forked(launched.__name__, *args, cwd=cwd, env={**OWN_STORE, "TROUBLE": trouble}, timeout=120)


def assert_no_token_lost(run: Path, steps: int, alone: dict[tuple[str, int], float]) -> None:
    """Each step was logged once, in order, and was that of one process."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, steps + 1))
    assert lines[-1]["rows"] == steps * ROWS
    saved = read_saved(run / "checkpoints/last.ckpt")
    assert saved["global_step"] == steps
    assert saved["TextData"]["cursor"]["rows"] == steps * ROWS
    ours = scalars(run)
    for step in range(1, steps + 1):
        assert ours["train/grad_norm", step] == pytest.approx(alone["train/grad_norm", step], rel=1e-3)


def test_a_killed_a_hung_and_a_stopped_process_cost_no_token(
    config: Path, alone: dict[tuple[str, int], float], tmp_path: Path
) -> None:
    """The run continues in its folder twice; the stop on purpose is a success, after which torchrun starts nothing."""
    shards = ("--trainer.strategy", "auto", "--parallel.shard", "2")
    done = launch(config, 1, "--nproc-per-node", "2", cwd=tmp_path, trouble="process", layout=shards)
    assert done.stdout == "[0]\n", done.stderr
    assert [path.name for path in (tmp_path / "runs/tiny").iterdir()] == ["version_0"]
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert done.stderr.count(f"started again: runs/tiny/version_0 continues from {last}\n") >= 2
    assert done.stderr.count("resuming after step 10 of 24") == 1
    assert done.stderr.count("resuming after step 15 of 24") == 1
    where = r"in step 18, in the forward pass \(trouble.py:\d+ in read_data\); the others wait for it"
    assert re.search(rf"error: process 1 hangs: it has made no progress for \d s {where}\n", done.stderr), done.stderr
    assert "stopped after optimizer step 20; its state is saved" in done.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert is_folder(run / "checkpoints/last.ckpt")
    assert json.loads((run / LAUNCH_FILE).read_text())["ended"] is True
    assert_no_token_lost(run, 20, alone)


def test_the_node_that_is_left_goes_on_alone(config: Path, alone: dict[tuple[str, int], float], tmp_path: Path) -> None:
    done = launch(config, 2, "--nproc-per-node", "1", "--nnodes", "1:2", cwd=tmp_path, trouble="node")
    assert done.stdout == "[0, -9]\n", done.stderr
    assert "resuming after step 10 of 24" in done.stderr
    assert "8 rows per step (batch_size 4 × 1 process × 2 accumulated)" in done.stderr
    assert_no_token_lost(tmp_path / "runs/tiny/version_0", STEPS, alone)


def test_processes_that_are_started_differently_are_refused(config: Path, tmp_path: Path) -> None:
    """Under torchrun's own command, in fresh processes, called by one that has trained before."""
    script = tmp_path / "each.sh"
    script.write_text(f'exec {sys.executable} -m lightning_gpt "$@" --trainer.max_steps $((30 + RANK))\n')
    own = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    call = (*own, "--no-python", "bash", str(script), "fit", "--config", str(config))
    env = environment({_FIRST_PROCESS: "1"})
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    said = "process 1 was started with a different configuration from process 0: trainer.max_steps is 31 and not 30"
    assert done.stderr.count(f"error: {said}\n") == 2, done.stderr
    assert not list((tmp_path / "runs").rglob("last.ckpt"))


def _record(**changes: Any) -> dict[str, Any]:
    return {"run": "torchrun a", "agent": "host 1 2", "again": False, "ended": False, **changes}


@pytest.mark.parametrize(
    ("launch", "record", "continues"),
    [
        (Launch("torchrun a", "host 1 2", False), _record(), True),
        (Launch("torchrun a", "host 1 2", False), _record(ended=True), True),  # a node has joined
        (Launch(None, "host 1 2", True), _record(run=None), True),
        (Launch(None, "host 3 4", True), _record(run=None), False),  # another torchrun without a name
        (Launch("torchrun a", "other 5 6", False), _record(), True),  # the first process is on another node now
        (Launch("torchrun a", "other 5 6", True), _record(ended=True), True),
        (Launch("torchrun a", "other 5 6", False), _record(ended=True), False),  # a new launch under an old name
        (Launch("torchrun b", "other 5 6", True), _record(), False),
    ],
)
def test_which_run_a_launch_continues(
    launch: Launch, record: dict[str, Any], continues: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert launch.is_of(record) == continues


def test_a_job_of_slurm_continues_only_where_it_was_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = Launch.of_this_process()
    assert first == Launch("slurm 7", None, False)
    for version in (2, 10):
        (tmp_path / f"version_{version}/checkpoints/last.ckpt").mkdir(parents=True)
        (tmp_path / f"version_{version}" / LAUNCH_FILE).write_text(json.dumps(first.record(ended=True)))
    (tmp_path / "version_11/checkpoints/last.ckpt").mkdir(parents=True)
    (tmp_path / "version_11" / LAUNCH_FILE).write_text("[")
    (tmp_path / "version_12").mkdir()  # nothing was saved
    (tmp_path / "version_12" / LAUNCH_FILE).write_text(json.dumps(first.record(ended=False)))
    assert started_before(tmp_path, first) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert started_before(tmp_path, Launch.of_this_process()) == tmp_path / "version_10"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert started_before(tmp_path, Launch.of_this_process()) is None
    assert started_before(tmp_path, None) is None


ONE_OF_TWO = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "RANK": "0",
}


@pytest.mark.parametrize(
    ("env", "options", "said"),
    [
        ({}, ("--trainer.devices", "3"), "trainer.devices is 3, but torchrun has started 2 on this node: leave "),
        (
            {"TORCHELASTIC_MAX_RESTARTS": "3"},
            (),
            "torchrun --max-restarts would start processes that wait ",
        ),
    ],
    ids=["devices", "store"],
)
def test_what_torchrun_was_not_told_is_refused(
    env: dict[str, str], options: tuple[str, ...], said: str, config: Path, tmp_path: Path
) -> None:
    done = run_command("fit", "--config", str(config), *options, cwd=tmp_path, env={**ONE_OF_TWO, **env})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {said}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("stopped", r"process 0 hangs: it has not answered for \d s; process 1 is in step 5, after a batch"),
        (
            "start",
            r"process 1 hangs: it has made no progress for \d s in the start-up "
            r"\(hanging.py:\d+ in _read_data\); the others wait for it",
        ),
    ],
)
def test_a_process_that_hangs_is_reported(where: str, said: str, tmp_path: Path) -> None:
    """One that keeps the store and is stopped by a signal, so that it does not even answer; one that has not begun."""
    done = run_forked(hanging.__name__, where, cwd=tmp_path, timeout=50)
    assert re.search(rf"^error: {said}", done.stderr, re.M), done.stderr
