"""``lightning-gpt fit`` with a ``parallel`` section: one YAML line changes the layout and none of the figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gpt.checkpoint_folder import read_saved
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"
UNLIKE = ("seconds", "train/tokens_per_second", "train/mfu", "layers/share_of_time", "cost/")
"""Figures of speed, which no two runs share."""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    corpus = tiny_corpus(tmp_path_factory.mktemp("fit") / "corpus.jsonl")
    content = tiny_config(corpus, max_steps=6, val_check_interval=3, precision="64-true", accumulate_grad_batches=1)
    content["diagnostics"] = {"enabled": True}
    content["model"]["init_args"] |= {"dropout": 0.0, "attention": "value_residual", "ffn": "swiglu", "dim": 16}
    content["data"] |= {"batch_size": 8, "separate_documents": True}
    content["averaging"] = {"decay": 0.9}
    content["checkpoints"] = {"every_n_steps": 4}
    return content


@pytest.fixture(scope="module")
def one(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("one")
    must_run("fit", "--config", str(write_config(folder / "tiny.yaml", content)), cwd=folder)
    return folder


@pytest.fixture(scope="module", params=[{"tensor": 2, "sequence": True}, {"pipeline": 2}], ids=["tensor", "pipeline"])
def divided(content: dict[str, Any], request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with matrices, stream and vocabulary, or the layers, divided over two processes."""
    folder = tmp_path_factory.mktemp("divided")
    trainer, line = content["trainer"] | {"devices": 2}, {"parallel": request.param}
    must_run(
        "fit", "--config", str(write_config(folder / "tiny.yaml", content | line | {"trainer": trainer})), cwd=folder
    )
    return folder


def figures(folder: Path, version: int = 0) -> dict[tuple[int, str], float]:
    """Every figure of ``metrics.jsonl`` but those of speed, by step and name."""
    lines = (folder / f"runs/tiny/version_{version}/metrics.jsonl").read_text().splitlines()
    return {
        (line["step"], name): value
        for line in map(json.loads, lines)
        for name, value in line.items()
        if isinstance(value, float) and not name.startswith(UNLIKE)
    }


def parameters(folder: Path) -> list[float]:
    lines = (folder / "runs/tiny/version_0/metrics.jsonl").read_text().splitlines()
    return [line["cost/parameters"] for line in map(json.loads, lines) if "cost/parameters" in line]


def checkpoint(folder: Path, name: str = LAST) -> dict[str, Any]:
    return read_saved(folder / name)


def test_every_figure_is_that_of_one_process(one: Path, divided: Path) -> None:
    ours, theirs = figures(divided), figures(one)
    assert ours.keys() == theirs.keys()
    assert {name for _, name in ours} >= {"train/loss", "train/grad_norm", "val/loss", "layers/grad_norm/layer_01"}
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name
    assert parameters(divided) == parameters(one) != []


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_are_those_of_one_process(one: Path, divided: Path, name: str) -> None:
    ours, theirs = (checkpoint(folder, LAST.replace("last", name)) for folder in (divided, one))
    for key in ("state_dict", "current_model_state"):
        assert ours[key].keys() == theirs[key].keys()
        for parameter, value in theirs[key].items():
            torch.testing.assert_close(ours[key][parameter], value, rtol=0, atol=1e-10)
    for own, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert own["param_groups"] == other["param_groups"]
        assert own["state"].keys() == other["state"].keys()
        for index, state in other["state"].items():
            for key, value in state.items():
                torch.testing.assert_close(own["state"][index][key], value, rtol=0, atol=1e-10)


def test_a_run_goes_on_in_another_layout(one: Path, divided: Path, tmp_path: Path) -> None:
    """From two divided processes to two that share weights, and from one to one: the next steps are the same."""
    further = ("--trainer.max_steps", "9")
    shared = (
        "--parallel.pipeline",
        "1",
        "--parallel.tensor",
        "1",
        "--parallel.sequence",
        "false",
        "--parallel.shard",
        "2",
    )
    must_run("fit", "--ckpt_path", str(divided / LAST), *further, *shared, "--data.batch_size", "4", cwd=divided)
    must_run("fit", "--ckpt_path", str(one / LAST), *further, cwd=one)
    ours, theirs = figures(divided, 1), figures(one, 1)
    assert {step for step, name in ours if name == "train/loss"} == set(range(1, 10))
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--trainer.devices", "2", "--parallel.tensor", "3"),
            "error: parallel (tensor 3) needs a multiple of 3 devices, but there are 2; for 2: data 2\n",
        ),
        (
            ("--trainer.devices", "2", "--parallel.tensor", "2", "--model.init_args.attention", "delta_net"),
            "error: layer 0: attention delta_net cannot be divided over parallel.tensor 2: use parallel.shard, or "
            "another kind (attention full, grouped or window; ffn gelu, swiglu or moe)\n",
        ),
        (
            ("--trainer.devices", "2", "--parallel.shard", "2", "--trainer.strategy", "ddp"),
            "error: trainer.strategy ddp and parallel (shard 2) cannot be combined: leave strategy out\n",
        ),
        (
            ("--trainer.devices", "2", "--parallel.pipeline", "2", "--parallel.micro_batches", "3"),
            "error: data.batch_size 8 cannot be divided into 3 micro-batches: set data.batch_size to a multiple of 3, "
            "or parallel.micro_batches to 2 or 4 or 8\n",
        ),
        (
            ("--parallel.sequence", "true"),
            "error: parallel.sequence divides the stream over the tensor axis, but parallel.tensor is 1\n",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused_in_one_line(
    content: dict[str, Any], tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    done = run_command("fit", "--config", str(write_config(tmp_path / "tiny.yaml", content)), *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] + "\n" == line
    assert not list(tmp_path.glob("runs/tiny/version_*"))


def test_a_step_can_be_left_out_by_all_stages(content: dict[str, Any], tmp_path: Path) -> None:
    config = str(write_config(tmp_path / "tiny.yaml", content))
    stages = ("--trainer.devices", "2", "--parallel.pipeline", "2", "--trainer.max_steps", "3")
    must_run("fit", "--config", config, *stages, "--spikes.skip_steps", "[[2,2]]", cwd=tmp_path)
    lines = map(json.loads, (tmp_path / "runs/tiny/version_0/metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]


def test_predictions_need_whole_models(one: Path) -> None:
    layers = ("--trainer.devices", "2", "--parallel.pipeline", "2")
    done = run_command("predict", "--ckpt_path", str(one / LAST), *layers, cwd=one)
    assert done.returncode == 2
    line = (
        "error: predict needs whole models, and with parallel.pipeline each device has some layers: leave pipeline out"
    )
    assert line in done.stderr.splitlines()


def test_lanes_go_on_from_one_layout_in_another_as_in_one_process(content: dict[str, Any], tmp_path: Path) -> None:
    """The cursor that two processes save, each with rows of its own, has the lanes of both."""
    lanes = content | {"diagnostics": {"enabled": False}}
    lanes["data"] = content["data"] | {"separate_documents": False, "packing": "lanes", "global_batch": 8}
    optimization = {"schedule": "constant", "warmup": 0}  # which does not depend on the number of steps
    model = content["model"]
    lanes["model"] = model | {"init_args": model["init_args"] | {"optimization": optimization}}
    config, further = str(write_config(tmp_path / "tiny.yaml", lanes)), ("--trainer.max_steps", "9")
    two = ("--trainer.devices", "2")
    must_run("fit", "--config", config, *further, cwd=tmp_path)
    done = must_run("fit", "--config", config, *two, "--parallel.shard", "2", "--data.batch_size", "4", cwd=tmp_path)
    assert "resume:    lightning-gpt fit --config" in done.stderr, "last.ckpt is a folder"
    saved = str(tmp_path / LAST.replace("version_0", "version_1"))
    must_run("fit", "--config", config, "--ckpt_path", saved, *further, *two, "--parallel.tensor", "2", cwd=tmp_path)
    ours, theirs = figures(tmp_path, 2), figures(tmp_path, 0)
    for step in range(1, 10):
        assert ours[step, "train/loss"] == pytest.approx(theirs[step, "train/loss"], rel=1e-10)
    one, other = (read_saved(tmp_path / LAST.replace("version_0", f"version_{number}")) for number in (0, 2))
    assert other["TextData"]["cursor"] == one["TextData"]["cursor"]
    assert len(one["TextData"]["cursor"]["lanes"]) == 8
