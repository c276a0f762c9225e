"""Lightning's Trainer options under the real command: each does what it says, or is refused in one line."""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.processes import run_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import weights

RUN = Path("runs/tiny/version_0")
ROWS = 24


@dataclass(frozen=True)
class Ended:
    """A command that has ended, and what its run left."""

    folder: Path
    status: int
    out: str
    said: str

    @property
    def run(self) -> Path:
        return self.folder / RUN

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    def steps_of(self, tag: str) -> list[int]:
        return [line["step"] for line in self.lines if tag in line]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of eight in an epoch, with a validation after every second."""
    folder = tmp_path_factory.mktemp("flags")
    corpus = tiny_corpus(folder / "corpus.jsonl", documents=30)
    content = tiny_config(corpus, max_steps=4, val_check_interval=2, enable_progress_bar=False, logger=False)
    content["model"]["init_args"] |= {"n_layer": 1, "dim": 16}
    content["data"] |= {"batch_size": ROWS, "val_share": 0.2, "test_share": 0.2, "eval_tokens": 10**6}
    content |= {"diagnostics": {"enabled": False}}
    return write_config(folder / "tiny.yaml", content)


def call(config: Path, folder: Path, *options: str, command: str = "fit") -> Ended:
    folder.mkdir(exist_ok=True)
    done = run_command(command, "--config", str(config), *options, cwd=folder, timeout=120)
    return Ended(folder, done.returncode, done.stdout, done.stderr)


def fit(config: Path, folder: Path, *options: str) -> Ended:
    """A run that must end well."""
    ended = call(config, folder, *options)
    assert ended.status == 0, ended.said
    return ended


@pytest.fixture(scope="module")
def plain(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return fit(config, tmp_path_factory.mktemp("plain"))


EPOCHS = (
    *("--trainer.max_epochs", "2", "--trainer.max_steps", "-1"),
    *("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "1.0"),
)


@pytest.mark.parametrize(
    ("options", "steps", "validations", "rows"),
    [
        (EPOCHS, 16, [8, 16], 16 * ROWS),
        ((*EPOCHS, "--trainer.max_steps", "11"), 11, [8], 11 * ROWS),
        ((*EPOCHS, "--trainer.limit_train_batches", "3"), 6, [3, 6], 6 * ROWS),
        ((*EPOCHS, "--trainer.limit_train_batches", "0.5"), 8, [4, 8], 8 * ROWS),
        ((*EPOCHS, "--trainer.check_val_every_n_epoch", "2"), 16, [16], 16 * ROWS),
        ((*EPOCHS, "--trainer.val_check_interval", "0.5"), 16, [4, 8, 12, 16], 16 * ROWS),
        ((*EPOCHS, "--trainer.val_check_interval", "3"), 16, [3, 6, 11, 14], 16 * ROWS),
        ((*EPOCHS, "--trainer.accumulate_grad_batches", "3"), 4, [2, 4], 4 * 3 * ROWS),
        # the last step of an epoch takes what is left of it
        (
            (*EPOCHS, "--trainer.limit_train_batches", "3", "--trainer.accumulate_grad_batches", "2"),
            4,
            [2, 4],
            6 * ROWS,
        ),
        ((*EPOCHS, "--trainer.overfit_batches", "2"), 4, [2, 4], 4 * ROWS),
        (("--trainer.limit_val_batches", "0"), 4, [], 4 * ROWS),
    ],
    ids=lambda value: " ".join(value).replace("--trainer.", "") if isinstance(value, tuple) else "",
)
def test_steps_validations_and_rows(
    options: tuple[str, ...], steps: int, validations: list[int], rows: int, config: Path, tmp_path: Path
) -> None:
    """Also the number of steps that the schedule is made for."""
    ended = fit(config, tmp_path, *options)
    assert ended.steps_of("train/loss") == list(range(1, steps + 1))
    assert {line["steps"] for line in ended.lines} == {steps}
    assert ended.steps_of("val/loss") == validations
    assert ended.lines[-1]["rows"] == rows
    assert ((ended.run / "checkpoints/best.ckpt").exists()) == bool(validations)


def test_the_part_of_the_validation_split_is_what_is_measured(config: Path, plain: Ended, tmp_path: Path) -> None:
    """The unigram baseline is that of the same part."""

    def baseline(ended: Ended) -> str:
        found = re.search(r"unigram baseline on the same text +(\S+)", ended.said)
        assert found
        return found[1]

    parts = [
        fit(config, tmp_path / limit, "--trainer.limit_val_batches", limit, "--trainer.num_sanity_val_steps", limit[:1])
        for limit in ("1", "0.5")
    ]
    assert len({baseline(ended) for ended in (*parts, plain)}) == 3
    assert all("initial validation loss" in ended.said for ended in (parts[0], plain))
    assert "initial validation loss" not in parts[1].said


SAME = {
    "detect_anomaly": "true",
    "deterministic": "true",
    "benchmark": "true",
    "inference_mode": "false",
    "sync_batchnorm": "true",
    "use_distributed_sampler": "false",
    "min_steps": "2",
    "min_epochs": "1",
    "enable_progress_bar": "true",
    "enable_model_summary": "true",
    "reload_dataloaders_every_n_epochs": "1",
    "devices": "auto",
    "strategy": "ddp",
}


def test_flags_that_change_no_weight(config: Path, plain: Ended, tmp_path: Path) -> None:
    ended = fit(config, tmp_path, *(part for flag, value in SAME.items() for part in (f"--trainer.{flag}", value)))
    ours, theirs = weights(ended.run), weights(plain.run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "Trainable params" in ended.out


def test_clipping_by_value_and_no_clipping_change_the_weights(config: Path, plain: Ended, tmp_path: Path) -> None:
    runs = [plain.run]
    for number, options in enumerate(
        (
            ("--trainer.gradient_clip_algorithm", "value", "--trainer.gradient_clip_val", "1e-3"),
            ("--trainer.gradient_clip_val", "1e-3"),
        )
    ):
        runs.append(fit(config, tmp_path / str(number), *options).run)
    tables = [weights(run)["model.token_embedding.weight"] for run in runs]
    assert not any(torch.equal(tables[first], tables[second]) for first, second in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("precision", "kept"),
    [
        ("16-true", torch.float16),
        ("16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
        ("64-true", torch.float64),
    ],
)
def test_precisions(precision: str, kept: torch.dtype, config: Path, tmp_path: Path) -> None:
    quick = ("--trainer.limit_val_batches", "0", "--trainer.max_steps", "1", "--data.batch_size", "1")
    ended = fit(config, tmp_path, "--trainer.precision", precision, *quick)
    assert {weight.dtype for weight in weights(ended.run).values() if weight.is_floating_point()} == {kept}
    assert yaml.safe_load((ended.run / "config.yaml").read_text())["trainer"]["precision"] == precision


# --- where a run is kept ---------------------------------------------------------------------------------------------

KEPT = {"config.yaml", "metrics.jsonl", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs")
TENSORBOARD = ("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "board")
BOTH = [{"class_path": logger[1], "init_args": {"save_dir": logger[3]}} for logger in (CSV, TENSORBOARD)]


@pytest.mark.parametrize(
    ("options", "others"),
    [
        (("--trainer.logger", "false"), set()),
        (CSV, {"logs"}),
        (TENSORBOARD, {"board"}),
        (("--trainer.logger", json.dumps(BOTH)), {"logs", "board"}),
    ],
    ids=["false", "CSVLogger", "TensorBoardLogger", "a list"],
)
def test_whatever_the_loggers_a_run_is_kept_in_its_folder(
    options: tuple[str, ...], others: set[str], config: Path, tmp_path: Path
) -> None:
    ended = fit(config, tmp_path, *options)
    assert {str(RUN / name) for name in KEPT} <= ended.files
    assert {file.split("/")[0] for file in ended.files} == {"runs", *others}
    assert f"--ckpt_path {RUN}/checkpoints/last.ckpt" in ended.said
    assert "tensorboard --logdir" not in ended.said, "the events are not in the run's folder"


def test_a_second_run_without_a_logger_resumes_the_first(config: Path, tmp_path: Path) -> None:
    fit(config, tmp_path)
    last = str(RUN / "checkpoints/last.ckpt")
    ended = fit(config, tmp_path, "--ckpt_path", last, "--trainer.max_steps", "6")
    lines = (tmp_path / "runs/tiny/version_1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {file.split("/")[2] for file in ended.files} == {"version_0", "version_1"}


def test_default_root_dir_holds_the_runs(config: Path, tmp_path: Path) -> None:
    ended = fit(config, tmp_path, "--trainer.default_root_dir", "out")
    assert {f"out/{RUN}/{name}" for name in KEPT} <= ended.files
    assert {file.split("/")[0] for file in ended.files} == {"out"}


def test_without_checkpoints(config: Path, tmp_path: Path) -> None:
    ended = fit(config, tmp_path, "--trainer.enable_checkpointing", "false")
    assert not any(file.endswith(".ckpt") for file in ended.files)
    assert ended.steps_of("val/loss") == [2, 4]
    assert "--ckpt_path" not in ended.said


@pytest.mark.parametrize("steps", ["true", "3"])
def test_fast_dev_run_leaves_nothing(steps: str, config: Path, tmp_path: Path) -> None:
    diagnosed = ("--diagnostics.enabled", "true", "--trainer.logger", "true")
    ended = fit(config, tmp_path, "--trainer.fast_dev_run", steps, *diagnosed)
    assert ended.files == set()
    said = {"true": "fast_dev_run: 1 step and a validation ran without an error; nothing is kept"}
    assert said.get(steps, "fast_dev_run: 3 steps and a validation") in ended.said


def test_limits_and_fast_dev_run_of_the_other_commands(config: Path, plain: Ended, tmp_path: Path) -> None:
    last = ("--ckpt_path", str(plain.run / "checkpoints/last.ckpt"))
    losses = set()
    for limit in ("1", "1.0"):
        ended = call(config, tmp_path / limit, *last, "--trainer.limit_test_batches", limit, command="test")
        losses.add(ended.out.splitlines()[0])
        assert ended.files == set()
    assert len(losses) == 2
    ended = call(config, tmp_path, *last, "--trainer.limit_predict_batches", "1", command="predict")
    rows = (tmp_path / RUN / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == ROWS
    ended = call(config, tmp_path / "fast", *last, "--trainer.fast_dev_run", "true", command="predict")
    assert (ended.status, ended.files) == (0, set())


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_figures_of_random_weights_are_refused(command: str, config: Path, tmp_path: Path) -> None:
    ended = call(config, tmp_path, command=command)
    assert (ended.status, ended.out) == (2, "")
    assert ended.said.splitlines()[-1] == f"error: {command} needs a trained model: give --ckpt_path FILE"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_that_would_measure_nothing_is_refused(
    command: str, config: Path, plain: Ended, tmp_path: Path
) -> None:
    limit = f"limit_{'val' if command == 'validate' else command}_batches"
    last = ("--ckpt_path", str(plain.run / "checkpoints/last.ckpt"))
    ended = call(config, tmp_path, *last, f"--trainer.{limit}", "0", command=command)
    assert (ended.status, ended.out) == (2, "")
    assert ended.said.splitlines()[-1].startswith(f"error: trainer.{limit} is 0, so {command} would measure nothing")


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_profilers_report(profiler: str, config: Path, tmp_path: Path) -> None:
    ended = fit(config, tmp_path, "--trainer.profiler", profiler)
    assert "Profiler Report" in ended.said
    assert re.search("training_step|Self CPU time total", ended.said)
    assert {file.split("/")[0] for file in ended.files} == {"runs"}


# --- callbacks -------------------------------------------------------------------------------------------------------


def callback(name: str, **options: Any) -> tuple[str, str]:
    return "--trainer.callbacks", json.dumps([{"class_path": name, "init_args": options}])


STOPPING = callback("EarlyStopping", monitor="val/loss", patience=2, min_delta=1e9)


def test_early_stopping_says_why_and_goes_on_counting_in_a_resumed_run(config: Path, tmp_path: Path) -> None:
    """The third validation is the second without an improvement; a run resumed between them stops there too."""
    alone = fit(config, tmp_path / "alone", *STOPPING, "--trainer.max_steps", "20")
    why = "stopped after step 6 of 20: EarlyStopping: Monitored metric val/loss did not improve in the last 2 records."
    assert why in alone.said
    assert alone.steps_of("val/loss") == [2, 4, 6]
    fit(config, tmp_path / "half", *STOPPING)
    last = ("--ckpt_path", str(tmp_path / "half" / RUN / "checkpoints/last.ckpt"))
    resumed = fit(config, tmp_path / "resumed", *STOPPING, "--trainer.max_steps", "20", *last)
    assert why in resumed.said
    longer = fit(config, tmp_path / "longer", *STOPPING, "--trainer.max_steps", "20", "--trainer.min_steps", "9")
    assert longer.steps_of("train/loss")[-1] >= 9


def test_max_time_says_so(config: Path, tmp_path: Path) -> None:
    ended = fit(config, tmp_path, "--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "100000")
    step = ended.steps_of("train/loss")[-1]
    assert f"stopped after step {step:,} of 100,000: max_time is over" in ended.said
    assert torch.load(ended.run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step


def test_checkpoints_rates_and_progress_bars_of_lightning(config: Path, tmp_path: Path) -> None:
    callbacks = [
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_top_k": 2}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine", "every_n_train_steps": 3}},
        {"class_path": "LearningRateMonitor"},
        {"class_path": "TQDMProgressBar"},
        {"class_path": "RichModelSummary"},
    ]
    bar = ("--trainer.enable_progress_bar", "true")
    ended = fit(config, tmp_path, "--trainer.callbacks", json.dumps(callbacks), *bar)
    saved = {file for file in ended.files if file.endswith(".ckpt")}
    names = ("last", "best", "epoch=0-step=2", "epoch=0-step=4")
    assert saved == {f"{RUN}/checkpoints/{name}.ckpt" for name in names} | {"mine/epoch=0-step=3.ckpt"}
    assert ended.steps_of("lr-AdamW/pg1") == [0, 1, 2, 3]
    assert "it/s" in ended.out


def test_a_checkpoint_by_what_is_not_logged_is_refused_when_it_is_due(config: Path, tmp_path: Path) -> None:
    ended = call(config, tmp_path, *callback("ModelCheckpoint", monitor="nothing"))
    assert ended.status == 2
    assert re.search("error: trainer: .*could not find the monitored key", ended.said.splitlines()[-1])


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            callback("EarlyStopping", monitor="train/los"),
            "EarlyStopping: monitor is 'train/los'; the validation measures",
        ),
        (
            (*callback("EarlyStopping", monitor="val/loss"), "--trainer.limit_val_batches", "0"),
            "EarlyStopping looks at validations, and limit_val_batches 0 leaves them out",
        ),
        (callback("LearningRateFinder"), "LearningRateFinder cannot be used here: compare values of"),
        (callback("BatchSizeFinder"), "BatchSizeFinder cannot be used here: it would train with another batch_size"),
        (
            callback("StochasticWeightAveraging", swa_lrs=0.1),
            "StochasticWeightAveraging cannot be used here: .* use --av",
        ),
        (callback("Timer", duration="00:00:00:01"), "Timer cannot be used here: use --trainer.max_time"),
        (callback("ModelCheckpoint", save_last=True), "ModelCheckpoint with save_last would replace the run's own"),
        pytest.param(
            callback("DeviceStatsMonitor"),
            "trainer: `DeviceStatsMonitor` cannot log CPU stats as `psutil` is not",
            marks=pytest.mark.skipif(importlib.util.find_spec("psutil") is not None, reason="psutil is installed"),
        ),
        (("--trainer.logger", "WandbLogger"), r"WandbLogger needs the package wandb>=\S+, which is not installed"),
        (("--trainer.barebones", "true"), "trainer.barebones cannot be used here: lightning-gpt bench"),
        (("--trainer.num_nodes", "2"), "trainer.num_nodes is 2, but nothing starts the other nodes: use torchrun"),
        (("--trainer.accelerator", "gpu"), "trainer.accelerator is 'gpu', but torch finds no GPU on this machine"),
        (("--trainer.accelerator", "mps"), "trainer.accelerator is 'mps', but torch finds no GPU on this machine"),
        (("--trainer.accelerator", "tpu"), "trainer.accelerator is 'tpu'; allowed here: auto, cpu"),
        (("--trainer.devices", "0"), "trainer.devices is '0'; it must be 'auto', -1 for all, a whole number from 1"),
        (("--trainer.devices", "[0]"), "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        (("--trainer.strategy", "fsdp"), "trainer: The strategy `fsdp` requires a GPU accelerator"),
        (("--trainer.strategy", "deepspeed"), "trainer: .* you must have DeepSpeed installed"),
        (("--trainer.strategy", "nonsense"), "trainer: You selected an invalid strategy name: `strategy='nonsense'`"),
        (("--trainer.precision", "transformer-engine"), "trainer: Requirement 'transformer_engine"),
        (("--trainer.precision", "8"), "trainer.precision is '8'; allowed: "),
        (
            ("--trainer.overfit_batches", "3", "--trainer.accumulate_grad_batches", "2"),
            "overfit_batches 3 is 3 batches",
        ),
        ((*EPOCHS, "--trainer.val_check_interval", "100"), r"trainer: `val_check_interval` \(100\) must be less than"),
        (("--trainer.limit_val_batches", "0.001"), "trainer: You requested to check 0.001 of the `val_dataloader`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value).replace("--trainer.", ""),
)
def test_what_cannot_work_is_refused_in_one_line(
    options: tuple[str, ...], said: str, config: Path, tmp_path: Path
) -> None:
    """Exit status 2, and nothing is left, not even an empty run."""
    if ("mps" in options or "gpu" in options) and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("there is such a device")
    ended = call(config, tmp_path, *options)
    line = ended.said.splitlines()[-1]
    assert ended.status == 2, ended.said
    assert re.search(f"error: .*{said}", line)
    assert len(line) <= 300
    assert ended.files == set()
