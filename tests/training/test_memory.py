"""A model with memory in real runs: what it remembers survives a kill, another number of processes, and validation."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.training.callbacks import LastCheckpoint, NonFinite
from lightning_gpt.training.module import GPTModule
from tests.processes import must_run, run_command, scalars, start_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import assert_same_series, wait_for_saves, weights

STEPS = 40
SEGMENTS: dict[str, Any] = {"kind": "segment", "length": 48}
TOKENS: dict[str, Any] = {"kind": "tokens", "n_memory": 3, "segment": 8}
LANES = "lightning_gpt_memory"


def config_of(folder: Path, memory: dict[str, Any], **init: Any) -> Path:
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, accumulate_grad_batches=2)
    content["trainer"]["val_check_interval"] = 40
    content["model"]["init_args"] |= {"memory": memory, "position": "rotary", **init}
    content["data"] |= {"packing": "lanes"}
    return write_config(folder / "tiny.yaml", content)


@pytest.fixture(scope="module", params=[SEGMENTS, TOKENS], ids=["segment", "tokens"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_of(tmp_path_factory.mktemp("memory"), request.param)


def checkpoint(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return loaded


def test_killed_and_resumed_is_the_run_left_alone(config: Path, alone: Path, tmp_path: Path) -> None:
    process = start_command("fit", "--config", str(config), cwd=tmp_path)
    first = tmp_path / "runs/tiny/version_0"
    wait_for_saves(first / "checkpoints/last.ckpt", 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"

    must_run("fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), "--data.num_workers", "2", cwd=tmp_path)

    second = tmp_path / "runs/tiny/version_1"
    assert_same_series(first, alone)
    assert_same_series(second, alone)
    ours, theirs = checkpoint(second), checkpoint(alone)
    assert all(torch.equal(weight, theirs["state_dict"][name]) for name, weight in ours["state_dict"].items())
    assert all(torch.equal(state, theirs[LANES][name]) for name, state in ours[LANES].items())
    assert ours["TextData"]["cursor"] == theirs["TextData"]["cursor"]


def test_the_checkpoint_holds_what_each_lane_has_read(alone: Path) -> None:
    """Lanes that go on in a document have read all of its rows so far; the rest of a lane's state is of real tokens."""
    saved = checkpoint(alone)
    cursor, states = saved["TextData"]["cursor"], saved[LANES]
    assert len(cursor["lanes"]) == 8
    read = [None if lane is None else 32 * lane[3] for lane in cursor["lanes"]]
    assert any(read), "some lane must be in the middle of a document to show anything"
    for lane, tokens in enumerate(read):
        if tokens is not None:
            assert int(states["read"][lane]) == tokens
    assert states["memory"].shape[0] == 8
    assert len(json.dumps(cursor)) < 2000


def test_one_process_goes_on_where_two_stopped_as_if_it_had_been_one(tmp_path: Path) -> None:
    """Dropout is each process's own, so without it; sums of floats in another order are all that differs."""
    config = config_of(tmp_path, SEGMENTS, dropout=0.0)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", "1")
    steady = ("--model.optimization.schedule", "constant", "--model.optimization.warmup", "0")
    once = ("--trainer.max_steps", "10", "--trainer.val_check_interval", "10")
    must_run("fit", "--config", str(config), *steady, *two, *once, cwd=tmp_path)
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    one = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.accumulate_grad_batches", "2")
    more = (*one, *steady, "--trainer.max_steps", "16", "--trainer.val_check_interval", "20")
    must_run("fit", "--ckpt_path", str(last), *more, cwd=tmp_path)
    must_run("fit", "--config", str(config), *more, cwd=tmp_path)
    runs = [tmp_path / f"runs/tiny/version_{n}" for n in (1, 2)]
    resumed, at_once = map(checkpoint, runs)
    assert resumed["TextData"]["cursor"] == at_once["TextData"]["cursor"]
    assert torch.equal(resumed[LANES]["read"], at_once[LANES]["read"])
    torch.testing.assert_close(resumed[LANES]["memory"], at_once[LANES]["memory"], rtol=1e-2, atol=1e-2)
    ours, theirs = map(scalars, runs)
    for step in range(11, 17):
        assert ours["train/loss", step] == pytest.approx(theirs["train/loss", step], rel=1e-3)


def test_evaluation_starts_with_nothing_remembered_and_is_the_same_for_any_batch(alone: Path, tmp_path: Path) -> None:
    losses = []
    for size in ("1", "4", "7"):
        call = ("validate", "--config", str(alone / "config.yaml"), "--ckpt_path", str(alone / "checkpoints/last.ckpt"))
        done = must_run(*call, "--data.batch_size", size, cwd=tmp_path)
        losses.append(float(re.search(r"val/loss (\S+)", done.stdout)[1]))  # type: ignore[index]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=2e-5)
    assert losses[0] == pytest.approx(scalars(alone)["val/loss", STEPS], abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            ("--data.packing", "concatenate", "--model.memory", '{"kind": "segment"}'),
            "only if data.packing is lanes",
        ),
        (("--data.separate_documents", "true"), "separate_documents and packing lanes cannot be combined"),
        (
            ("--data.separate_documents", "true", "--data.packing", "best_fit"),
            "set data.packing to lanes instead of sep",
        ),
        (("--model.compile_blocks", "true"), "compile_blocks and memory cannot be combined"),
        (("--model.optimization.batch_warmup", "0.5"), "the number of lanes is the number of rows per optimizer step"),
        (
            ("--model.position", "learned", "--model.memory", "segment"),
            "use position alibi, llama3, none, rotary, t5, yarn",
        ),
    ],
)
def test_what_does_not_go_with_memory_or_lanes_is_refused(tmp_path: Path, call: tuple[str, ...], message: str) -> None:
    config = config_of(tmp_path, TOKENS)
    done = run_command("fit", "--config", str(config), *call, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_another_number_of_lanes_is_refused(alone: Path, tmp_path: Path) -> None:
    last = str(alone / "checkpoints/last.ckpt")
    done = run_command("fit", "--ckpt_path", last, "--data.batch_size", "8", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "cannot resume: lanes (rows of an optimizer step) changed from 8 to 16" in done.stderr.splitlines()[-1]


def test_generation_and_prediction_go_with_memory(alone: Path, tmp_path: Path) -> None:
    last = str(alone / "checkpoints/last.ckpt")
    done = must_run("generate", "--checkpoint", last, "--prompt", "ab", "--max_new_tokens", "60", cwd=tmp_path)
    assert len(done.stdout) > 30
    must_run("predict", "--config", str(alone / "config.yaml"), "--ckpt_path", last, cwd=tmp_path)
    lines = [json.loads(line) for file in tmp_path.rglob("predictions.jsonl") for line in file.open()]
    assert sum(len(line["targets"]) for line in lines) > 100
    assert weights(alone).keys() == checkpoint(alone)["state_dict"].keys()


class NaNWeight(L.Callback):
    """Lets the first weight be NaN in the forward and backward pass of the third step."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weight = next(pl_module.parameters()).data
        self.before = self.weight.clone()
        if trainer.global_step == 2:
            self.weight.fill_(torch.nan)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weight.copy_(self.before)


@pytest.mark.parametrize("memory", [{**SEGMENTS, "length": 8}, TOKENS], ids=["segment", "tokens"])
@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_a_step_that_is_not_finite_leaves_nothing_in_memory(
    action: Any, memory: dict[str, Any], tmp_path: Path
) -> None:
    module = GPTModule(n_layer=1, n_head=2, dim=16, block_size=16, vocab_size=300, memory=memory, position="rotary")
    source = Files(str(tiny_corpus(tmp_path / "corpus.jsonl")))
    data = TextData([source], tokenizer=300, block_size=16, batch_size=4, val_share=0.1, packing="lanes")
    callbacks = [NaNWeight(), NonFinite(action), LastCheckpoint(every_n_steps=1)]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=4,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(module, data)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved[LANES]["memory"].isfinite().all()
    assert next(iter(saved["optimizer_states"][0]["state"].values()))["step"] == 3, "the fourth step was taken"
