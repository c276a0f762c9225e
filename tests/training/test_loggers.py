"""Loggers beside TensorBoard, each by the line of YAML that docs/loggers.md gives."""

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config

PAGE = Path(__file__).parents[2] / "docs/loggers.md"
(CALLBACK,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
LINES = dict(re.findall(r"^\| ([\w& ]+)(?:, [\w ]+)? \| `(trainer: .*?)` \|", PAGE.read_text(), re.M))


def needs(*modules: str) -> Any:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loggers")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=4, val_check_interval=2)
    content["diagnostics"] = {"enabled": True}
    write_config(folder / "tiny.yaml", content)
    return folder


def fit(folder: Path, logger: str, *options: str) -> tuple[str, list[dict[str, Any]]]:
    """What a run with the logger says, and its metrics.jsonl."""
    name = re.sub(r"\W", "", logger)
    (folder / f"{name}.yaml").write_text(LINES[logger])
    env = {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    call = ("fit", "--config", "tiny.yaml", "--config", f"{name}.yaml", "--name", name, *options)
    done = must_run(*call, cwd=folder, env=env)
    lines = (folder / f"runs/{name}/version_0/metrics.jsonl").read_text().splitlines()
    return done.stderr, [json.loads(line) for line in lines]


def test_the_lines_are_yaml() -> None:
    assert set(LINES) == {"Weights & Biases", "MLflow", "CSV", "TensorBoard and CSV"}
    for line in LINES.values():
        assert "logger" in yaml.safe_load(line)["trainer"]


def trusted(folder: Path, limit: float) -> tuple[str, ...]:
    """The options that add the page's callback."""
    (folder / "alike.py").write_text(CALLBACK)
    added = "--trainer.callbacks+=alike.StopWhenAlike"
    assert f"--trust alike.py {added} --trainer.callbacks.limit=" in PAGE.read_text()
    return ("--trust", "alike.py", added, f"--trainer.callbacks.limit={limit}")


def test_csv_has_every_scalar(folder: Path) -> None:
    """Those that a callback makes of the diagnostics as well."""
    said, lines = fit(folder, "CSV", *trusted(folder, limit=2))
    layers = json.loads((folder / "runs/CSV/version_0/layers.json").read_text())
    cosines = {entry["step"]: entry["token_cosine"] for entry in layers}
    rises = {line["step"]: line["alike/rise"] for line in lines if "alike/rise" in line}
    assert set(rises) == {0, 1, 2, 3}  # logged before each step; a validation follows every second one
    for step, rise in rises.items():
        measured = cosines[step // 2 * 2]
        assert rise == pytest.approx(measured[-1] - measured[0], rel=1e-5)
    assert "CSVLogger: scalars and settings; pictures" in said
    with (folder / "csv/lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {tag for line in lines for tag in line if "/" in tag}
    assert expected
    assert expected <= set(rows[0])
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows if row["val/loss"]}
    assert losses == pytest.approx({line["step"]: line["val/loss"] for line in lines if "val/loss" in line})
    settings = yaml.safe_load((folder / "csv/lightning_logs/version_0/hparams.yaml").read_text())
    assert settings["n_layer"] == 2


def test_tensorboard_beside_another_keeps_its_pictures(folder: Path) -> None:
    said, lines = fit(folder, "TensorBoard and CSV", *trusted(folder, limit=-2))
    assert max(line["step"] for line in lines) == 1  # the callback has ended the run
    assert "pictures" not in said
    assert list((folder / "board").rglob("events.out.tfevents.*"))


@needs("wandb")
def test_weights_and_biases_offline(folder: Path) -> None:
    said, _ = fit(folder, "Weights & Biases")
    assert "WandbLogger: scalars and settings" in said
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"val/loss" in content
    assert b"n_layer" in content


@needs("mlflow", "sqlalchemy")
def test_mlflow_in_a_file(folder: Path) -> None:
    import sqlite3

    said, lines = fit(folder, "MLflow")
    assert "MLFlowLogger: scalars and settings" in said
    with sqlite3.connect(folder / "mlflow.db") as base:
        logged = dict(base.execute("select step, value from metrics where key = 'val/loss'").fetchall())
        settings = dict(base.execute("select key, value from params").fetchall())
    assert logged == pytest.approx({line["step"]: line["val/loss"] for line in lines if "val/loss" in line})
    assert settings["n_layer"] == "2"


def test_a_logger_that_is_not_installed_is_one_line(folder: Path) -> None:
    call = ("fit", "--config", "tiny.yaml", "--trainer.logger", "CometLogger")
    if importlib.util.find_spec("comet_ml") is not None:
        pytest.skip("comet_ml is installed")
    done = run_command(*call, cwd=folder)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: ")
