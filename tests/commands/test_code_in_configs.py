"""A config, a study or a run folder from a stranger runs no code, and imports no module without ``--trust``."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_command, tiny_config, write_config

# whatever imports it, or calls anything in it, leaves a file behind
SENTINEL = """
import pathlib
from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback

from lightning_gpt.data.sources.files import Files
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.report.sections.table import SettingsTable

pathlib.Path("imported").touch()

class Source(Files):
    pass

class Reporter(Callback):
    def on_fit_start(self, trainer, pl_module):
        pathlib.Path("called").touch()

def keep(text):
    pathlib.Path("called").touch()
    return True

@dataclass
class MyTable(SettingsTable):
    pass
"""

CLASS, FUNCTION = "sentinel.Reporter", "sentinel.keep"


def source(**init_args: Any) -> dict[str, Any]:
    return {"data": {"sources": [{"class_path": "Files", "init_args": {"paths": "corpus", **init_args}}]}}


def trainer(**options: Any) -> dict[str, Any]:
    return {"trainer": options}


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


CONFIGS = {
    "a filter": source(keep="os.system"),
    "a filter of the working folder": source(keep=FUNCTION),
    "a builtin": source(keep="builtins.eval"),
    "a builtin without its module": source(keep="eval"),
    "a lambda": source(keep="lambda text: open('called', 'w')"),
    "a call": source(keep="os.system('touch called')"),
    "a relative path": source(keep=".sentinel.keep"),
    "through torch": source(keep="torch.os.system"),
    "through Lightning": source(keep="lightning.pytorch.callbacks.model_checkpoint.os.system"),
    "through this package": source(keep="lightning_gpt.data.sources.files.os.system"),
    "this package's own import": source(keep="lightning_gpt.trust._import_name"),
    "torch.load": source(keep="torch.load"),
    "torch.hub": source(keep="torch.hub.load"),
    "torch's shell": source(keep="torch.utils.collect_env.run"),
    "torch's compiler": source(keep="torch.utils.cpp_extension.load"),
    "a method that unpickles": source(keep="lightning_gpt.training.module.GPTModule.load_from_checkpoint"),
    "a method that downloads": source(keep="lightning.pytorch.loggers.WandbLogger.download_artifact"),
    "a callable object": source(keep=spec("functools.partial", func="os.system")),
    "a process as a filter": source(keep=spec("subprocess.Popen", args="touch called", shell=True)),
    "a source": {"data": {"sources": [spec("sentinel.Source", paths="corpus")]}},
    "a model": {"model": {"class_path": CLASS}},
    "a model's nested option": {"model": spec("GPTModule", optimization=spec(CLASS))},
    "a callback": trainer(callbacks=[{"class_path": CLASS}]),
    "one callback": trainer(callbacks={"class_path": CLASS}),
    "a callback by its path": trainer(callbacks=[CLASS]),
    "a callback's function": trainer(callbacks=[spec("LambdaCallback", on_fit_start=FUNCTION)]),
    "a callback's keywords": trainer(callbacks=[{"class_path": CLASS, "dict_kwargs": {"a": 1}}]),
    "a logger": trainer(logger={"class_path": CLASS}),
    "loggers": trainer(logger=[{"class_path": CLASS}]),
    "a profiler": trainer(profiler={"class_path": CLASS}),
    "a strategy": trainer(strategy={"class_path": CLASS}),
    "a strategy's function": trainer(strategy=spec("DDPStrategy", ddp_comm_hook=FUNCTION)),
    "a strategy's types": trainer(strategy=spec("FSDPStrategy", activation_checkpointing=CLASS)),
    "a strategy's part": trainer(strategy=spec("DDPStrategy", cluster_environment={"class_path": CLASS})),
    "an accelerator": trainer(accelerator={"class_path": CLASS}),
    "a plugin": trainer(plugins={"class_path": CLASS}),
    "plugins": trainer(plugins=[{"class_path": CLASS}]),
    "a plugin's part": trainer(plugins=[spec("AsyncCheckpointIO", checkpoint_io={"class_path": CLASS})]),
    "unpickled checkpoints": {"ckpt_path": "stranger/checkpoints/last.ckpt", "weights_only": False},
    "a part in another file": {"data": "data.yaml"},
}

LIGHTNINGS_OWN = {
    "a strategy by its path": trainer(strategy=CLASS),
    "a profiler by its path": trainer(profiler=CLASS),
    "an accelerator by its path": trainer(accelerator=CLASS),
    "keywords of a logger": trainer(
        limit_val_batches=7.5,  # refused after the logger is built
        logger=spec("TensorBoardLogger", save_dir=".") | {"dict_kwargs": {"comment": {"class_path": CLASS}}},
    ),
}
"""Refused by Lightning, in its words."""

TEXTS = {
    "a YAML tag": "data: !!python/object/apply:os.system ['touch called']",
    "a YAML name": "data: {sources: [{class_path: Files, init_args: {paths: corpus, keep: !!python/name:os.system }}]}",
    "a YAML module": "name: !!python/module:sentinel",
}

ALONE = (
    ("fit", "--model", CLASS),
    ("fit", "--model.help", CLASS),
    ("fit", "--data.sources.help", "sentinel.Source"),
    ("fit", "--trainer.callbacks.help", CLASS),
    ("fit", "--trainer.callbacks+=" + CLASS),
    ("fit", "--data.sources+=sentinel.Source"),
    ("fit", "--data.sources+=Files", "--data.sources.paths", "corpus", "--data.sources.keep", FUNCTION),
    ("fit", "--data.sources", json.dumps(source(keep=FUNCTION)["data"]["sources"])),
    ("fit", "--data", json.dumps(source(keep=FUNCTION)["data"])),
    # the text of an error, in which a class is looked for
    ("fit", "--trainer.max_steps", f"Option 'a' is not accepted; given class_path '{CLASS}'"),
    ("fit", "--ckpt_path", "stranger/checkpoints/last.ckpt"),
    ("validate", "--ckpt_path", "stranger/checkpoints/last.ckpt"),
    ("test", "--ckpt_path", "stranger/checkpoints/last.ckpt"),
    ("predict", "--ckpt_path", "stranger/checkpoints/last.ckpt"),
    ("prepare", "--config", "filter.yaml", "--output", "out"),
    ("tokenizer", "--config", "filter.yaml", "--vocab_size", "300", "--output", "out"),
    ("prepare", "--output", "out", "--data.sources+=sentinel.Source", "--config", "empty.yaml"),
    ("tokenizer", "--output", "out", "--vocab_size", "300", "--data.sources.help", "sentinel.Source"),
    ("study", "--config", "base.yaml"),
    ("study", "--config", "variants.yaml"),
    ("study", "--config", "report.yaml"),
    ("study", "--config", "report.yaml", "--report_only"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder from a stranger: a module, a corpus whose documents are commands, a run and studies."""
    (tmp_path / "sentinel.py").write_text(SENTINEL)
    (tmp_path / "corpus").mkdir()
    for number in range(20):
        (tmp_path / f"corpus/{number}.txt").write_text("touch called #" + f" a word {number}" * 20)
    evil = write_config(tmp_path / "filter.yaml", source(keep=FUNCTION))
    write_config(tmp_path / "data.yaml", source(keep=FUNCTION)["data"])
    write_config(tmp_path / "empty.yaml", {"data": {"val_share": 0.2}})
    run = tmp_path / "stranger"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes(evil.read_bytes())
    (run / "checkpoints/last.ckpt").write_bytes(b"not read")
    study = {"name": "tiny", "config": tiny_config(tmp_path / "corpus", max_steps=1), "seeds": [0]}
    studies = {
        "base": {"base": ["filter.yaml"]},
        "variants": {"variants": {"evil": {"trainer.callbacks": [{"class_path": CLASS}]}}},
        "report": {"report": ["sentinel.MyTable"]},
    }
    del study["config"]["data"]["sources"]
    for name, part in studies.items():
        write_config(tmp_path / f"{name}.yaml", study | part)
    return tmp_path


def assert_refused(folder: Path, *call: str) -> str:
    done = run_command(*call, cwd=folder)
    assert not (folder / "imported").exists(), done.stderr
    assert not (folder / "called").exists(), done.stderr
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: ")
    assert len(said) <= 300
    assert done.stdout == ""
    return said


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_config_runs_code(folder: Path, config: dict[str, Any]) -> None:
    write_config(folder / "evil.yaml", config)
    assert_refused(folder, "fit", "--config", "evil.yaml")


@pytest.mark.parametrize("config", LIGHTNINGS_OWN.values(), ids=LIGHTNINGS_OWN)
def test_no_value_that_lightning_reads_runs_code(folder: Path, config: dict[str, Any]) -> None:
    write_config(folder / "evil.yaml", config)
    done = run_command("fit", "--config", "evil.yaml", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert not (folder / "imported").exists()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_yaml_runs_code(folder: Path, text: str) -> None:
    (folder / "evil.yaml").write_text(text)
    assert_refused(folder, "fit", "--config", "evil.yaml")
    assert_refused(folder, "prepare", "--config", "evil.yaml", "--output", "out")


@pytest.mark.parametrize("call", ALONE, ids=" ".join)
def test_no_command_runs_code_without_trust(folder: Path, call: tuple[str, ...]) -> None:
    assert_refused(folder, *call)


def test_no_environment_variable_runs_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_FIT__TRAINER__CALLBACKS", json.dumps([{"class_path": CLASS}]))
    assert f"trainer.callbacks is {CLASS}, " in assert_refused(folder, "fit")
