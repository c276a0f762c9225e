"""Ctrl-C, SIGTERM and SIGHUP at given moments: exit status 130, one line, and nothing lost."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.checkpoint_file import read_checkpoint
from tests.processes import run_command, start_fresh_command, tiny_config, tiny_corpus, write_config

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

# a module of the user's own, which sends its process signals when a batch of a stage has ended
SENDER = """
import os
import signal

from lightning.pytorch.callbacks import Callback


class Sender(Callback):
    def __init__(self, stage: str, signals: list[str]):
        self.stage, self.signals = stage, signals

    def send(self):
        for name in self.signals:
            os.kill(os.getpid(), signal.Signals[name])

    def on_validation_batch_end(self, trainer, *_):
        if self.stage == "first validation" and trainer.sanity_checking:
            self.send()

    def on_train_batch_end(self, trainer, *_):
        if self.stage == "training" and trainer.global_step == 7:
            self.send()
"""

# the save of step 5 is being written when step 7 has ended
SLOW_DISK = """
import os
import threading
import time

fsync_at_once = os.fsync


def fsync(file):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(5)
    fsync_at_once(file)


os.fsync = fsync
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "sender.py").write_text(SENDER)
    (folder / "deaf.py").write_text(f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SENDER}")
    (folder / "slow_disk.py").write_text(f"{SLOW_DISK}{SENDER}")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=10, val_check_interval=10)
    content |= {"diagnostics": {"enabled": False}, "samples": {"prompts": []}, "checkpoints": {"every_n_steps": 5}}
    return write_config(folder / "tiny.yaml", content)


def fit(config: Path, folder: Path, stage: str, *signals: str, module: str = "sender") -> Any:
    """A run that is sent ``signals`` in ``stage``."""
    sender = {"class_path": f"{module}.Sender", "init_args": {"stage": stage, "signals": list(signals)}}
    file = write_config(folder / "sender.yaml", {"trainer": {"callbacks": [sender]}})
    trust = ("--trust", str(config.with_name(f"{module}.py")))
    return run_command("fit", *trust, "--config", str(config), "--config", str(file), cwd=folder)


def assert_stopped(done: Any, said: str) -> None:
    assert done.returncode == 130, done.stderr
    assert re.fullmatch(said, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped" not in "".join(done.stderr.splitlines()[:-1])


@pytest.mark.parametrize("name", SIGNALS)
def test_any_signal_saves_the_step(name: str, config: Path, tmp_path: Path) -> None:
    done = fit(config, tmp_path, "training", name)
    assert_stopped(done, r"stopped after optimizer step 7; its state is saved in \S+last.ckpt")
    assert read_checkpoint(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["global_step"] == 7


@pytest.mark.parametrize("name", SIGNALS)
def test_before_the_first_step_there_is_nothing_to_save(name: str, config: Path, tmp_path: Path) -> None:
    assert_stopped(fit(config, tmp_path, "first validation", name), "stopped before the first optimizer step")


def test_a_terminals_ctrl_c_reaches_the_loaders_workers_too_and_the_step_is_saved(config: Path, tmp_path: Path) -> None:
    options = ("--data.num_workers", "2", "--trainer.max_steps", "100000", "--trainer.val_check_interval", "1000")
    process = start_fresh_command("fit", "--config", str(config), *options, cwd=tmp_path, process_group=0)
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    while not last.exists():
        assert process.poll() is None
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    said, _ = process.communicate(timeout=120)
    stopped = re.fullmatch(
        r"stopped after optimizer step (\d+); its state is saved in \S+last.ckpt", said.splitlines()[-1]
    )
    assert (process.returncode, bool(stopped)) == (130, True), said
    assert stopped is not None
    assert read_checkpoint(last)["global_step"] == int(stopped[1])
    assert "Traceback" not in said


@pytest.mark.parametrize("module", ["sender", "slow_disk"])
def test_a_second_ctrl_c_stops_at_once_after_a_save_that_has_begun(module: str, config: Path, tmp_path: Path) -> None:
    done = fit(config, tmp_path, "training", "SIGINT", "SIGINT", module=module)
    assert_stopped(done, r"stopped at once; step 5 is saved in \S+last.ckpt")
    folder = tmp_path / "runs/tiny/version_0/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 5


def test_a_terminal_that_closes_sends_two_sighups_and_both_wait_for_the_step(config: Path, tmp_path: Path) -> None:
    assert_stopped(fit(config, tmp_path, "training", "SIGHUP", "SIGHUP"), r"stopped after optimizer step 7; .*")


def test_nohup(config: Path, tmp_path: Path) -> None:
    done = fit(config, tmp_path, "training", "SIGHUP", module="deaf")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")["global_step"] == 10


@pytest.mark.parametrize("command", ["fit", "prepare", "study", "generate"])
@pytest.mark.parametrize("name", SIGNALS)
def test_while_modules_are_imported(name: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "sends.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    assert_stopped(run_command(command, "--trust", "sends.py", cwd=tmp_path), "stopped")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_generate_stops_in_the_middle_of_a_text(config: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "x.yaml", {})
    made = run_command("fit", "--config", str(config), "--trainer.max_steps", "5", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    process = start_fresh_command("generate", "--checkpoint", last, "--max_new_tokens", "1000000", cwd=tmp_path)
    assert process.stdout is not None
    while not process.stdout.read(1):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert (process.returncode, text.splitlines()[-1][-len("stopped") :]) == (130, "stopped")
    assert "Traceback" not in text


def test_a_deleted_run_folder_ends_the_run(config: Path, tmp_path: Path) -> None:
    """Not with a metrics.jsonl that lacks its beginning."""
    code = SENDER.replace("self.send()", "__import__('shutil').rmtree(trainer.log_dir)")
    (tmp_path / "remover.py").write_text(code)
    sender = {"class_path": "remover.Sender", "init_args": {"stage": "training", "signals": []}}
    file = write_config(tmp_path / "sender.yaml", {"trainer": {"callbacks": [sender]}})
    done = run_command("fit", "--trust", "remover.py", "--config", str(config), "--config", str(file), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "No such file or directory" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs/tiny/version_0/metrics.jsonl").exists()


SLOW_NORM = """
import pathlib
import time

from lightning_gpt.models.norms import LayerNorm, norms


@norms.register("slow")
class SlowNorm(LayerNorm):
    def __init__(self, dim: int, bias: bool) -> None:
        pathlib.Path("checking").touch()
        time.sleep(600)
"""
"""A variant that is checked for a long time, and tells that the check is there."""


def test_ctrl_c_does_not_reach_the_process_that_checks_a_study(config: Path, tmp_path: Path) -> None:
    """A terminal sends it to all of them; only the study answers, and ends the other."""
    content = tiny_config(config.with_name("corpus.jsonl"), max_steps=4)
    del content["name"], content["seed_everything"]
    content["model"]["init_args"]["norm"] = "slow"
    study = {"name": "tiny", "config": content, "grid": {"model.init_args.n_layer": [1]}, "measure": ["val/loss"]}
    write_config(tmp_path / "study.yaml", study)
    (tmp_path / "slow.py").write_text(SLOW_NORM)
    command = ["study", "--config", "study.yaml", "--folder", "out", "--trust", "slow.py"]
    process = start_fresh_command(*command, cwd=tmp_path, process_group=0)
    while not (tmp_path / "checking").exists():
        assert process.poll() is None
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    text, _ = process.communicate(timeout=120)
    assert (process.returncode, text.splitlines()) == (130, ["stopped"])
