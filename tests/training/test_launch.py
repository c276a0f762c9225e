"""Runs that torchrun starts: killed, hung, stopped, started differently, and started again."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.checkpoint_folder import read_saved
from lightning_gpt.commands.run_folder import LAUNCH_FILE, started_before
from lightning_gpt.launch import Launch
from tests.processes import environment, must_run, run_command, scalars, tiny_config, tiny_corpus, write_config

STEPS = 24
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
        if os.environ["TROUBLE"] == "stop" and trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        if os.environ["TROUBLE"] != "fail" or trainer.global_rank != 1:
            return
        if trainer.global_step == 13 and self.once("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.global_step == 17 and self.once("hung"):
            time.sleep(600)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    quiet = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, strategy="ddp", **quiet)
    del content["trainer"]["devices"]
    content["model"]["init_args"]["dropout"] = 0.0
    content |= {"diagnostics": {"enabled": False}}
    (folder / "trouble.py").write_text(TROUBLE)
    return write_config(folder / "tiny.yaml", content)


def torchrun(
    config: Path, *args: str, cwd: Path, trouble: str = "", command: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run fit in two processes."""
    fit = ("fit", "--config", str(config), "--trust", str(config.parent / "trouble.py"))
    fit += ("--trainer.callbacks+=trouble.Trouble", "--heartbeat.limit", "15", *args)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "2" if trouble == "fail" else "0"),
            *(command or ("-m", "lightning_gpt")),
            *fit,
        ],
        cwd=cwd,
        env=environment({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TROUBLE": trouble}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_killed_and_a_hung_process_cost_no_token(config: Path, tmp_path: Path) -> None:
    """The run continues in its folder twice, and ends as one process does with the joined batch."""
    done = torchrun(config, cwd=tmp_path, trouble="fail")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs/tiny").iterdir()] == ["version_0"]
    run = tmp_path / "runs/tiny/version_0"
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert done.stderr.count(f"started again: runs/tiny/version_0 continues from {last}\n") == 2
    assert done.stderr.count("resuming after step 10 of 24") == 1
    assert done.stderr.count("resuming after step 15 of 24") == 1
    assert "error: process 1 hangs: it has made no progress for " in done.stderr
    assert "in step 18, in the forward pass (trouble.py:22 in on_train_batch_start); the others wait" in done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert lines[-1]["rows"] == STEPS * 8
    assert read_saved(run / "checkpoints/last.ckpt")["TextData"]["cursor"]["rows"] == STEPS * 8
    assert json.loads((run / LAUNCH_FILE).read_text())["ended"] is True

    one = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--data.batch_size", "8", "--name", "joined")
    must_run("fit", "--config", str(config), *one, cwd=tmp_path)
    ours, theirs = scalars(run), scalars(tmp_path / "runs/joined/version_0")
    for step in range(1, STEPS + 1):
        assert ours["train/grad_norm", step] == pytest.approx(theirs["train/grad_norm", step], rel=1e-3)


def test_a_stop_on_purpose_is_a_success(config: Path, tmp_path: Path) -> None:
    done = torchrun(config, cwd=tmp_path, trouble="stop")
    assert done.returncode == 0, done.stderr
    assert "stopped after optimizer step 20; its state is saved" in done.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert read_saved(run / "checkpoints/last.ckpt")["global_step"] == 20
    assert json.loads((run / LAUNCH_FILE).read_text())["ended"] is True


def test_processes_that_are_started_differently_are_refused(config: Path, tmp_path: Path) -> None:
    script = tmp_path / "each.sh"
    script.write_text(f'exec {sys.executable} -m lightning_gpt "$@" --trainer.max_steps $((30 + RANK))\n')
    done = torchrun(config, cwd=tmp_path, command=("--no-python", "bash", str(script)))
    assert done.returncode == 1
    said = "process 1 was started with another configuration than process 0: trainer.max_steps is 31 and not 30"
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


def test_torchrun_says_how_many_devices_there_are(config: Path, tmp_path: Path) -> None:
    env = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = run_command("fit", "--config", str(config), "--trainer.devices", "3", cwd=tmp_path, env=env)
    assert done.returncode == 2
    said = "error: trainer.devices is 3, but torchrun has started 2 on this node: leave trainer.devices out"
    assert done.stderr.splitlines()[-1] == said
    assert not (tmp_path / "runs").exists()


def test_a_process_that_stands_still_is_reported(tmp_path: Path) -> None:
    """Stopped by a signal, the first process, which keeps the store, does not even answer."""
    script = tmp_path / "still.py"
    script.write_text(STILL)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment(address), stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stderr is not None
        said = it.stderr.read()
    assert re.search(r"error: process 0 hangs: it has not answered for \d s, in step 5", said), said


STILL = """
import os, signal, sys, time
import lightning as L
import torch.distributed as dist
from lightning_gpt.training.callbacks import Heartbeat

class Standing:
    world_size, global_step = 2, 4
    def __init__(self, rank): self.global_rank = rank

read, write = os.pipe()
child = os.fork()
rank = 1 if child == 0 else 0
if rank == 0:
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    os.write(write, str(store.port).encode())
else:
    store = dist.TCPStore("127.0.0.1", int(os.read(read, 9)), 2, is_master=False)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
heartbeat, trainer = Heartbeat(3), Standing(rank)
heartbeat.setup(trainer, None, "fit")
heartbeat.on_train_batch_start(trainer)
end = time.monotonic() + 60
if rank == 0:
    while time.monotonic() < end:
        time.sleep(0.1)
        if os.path.exists(sys.argv[0] + ".go"): os.kill(os.getpid(), signal.SIGSTOP)
else:
    time.sleep(2)
    open(sys.argv[0] + ".go", "w").close()
    def killed():
        os.kill(os.getppid(), signal.SIGKILL)
    exit_at_once = os._exit
    os._exit = lambda status: (killed(), exit_at_once(status))
    while time.monotonic() < end:
        time.sleep(0.1)
        heartbeat.on_train_batch_end(trainer) if time.monotonic() < end - 57 else None
"""
