"""A config, a study or a run folder from a stranger runs no code, and imports no module without ``--trust``."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_command, run_forked, tiny_config, write_config

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
    "this package's functions": source(keep="lightning_gpt.training.callbacks.summary.say_next_commands"),
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

REFUSED_BY_LIGHTNING = {
    "a strategy by its path": trainer(strategy=CLASS),
    "a profiler by its path": trainer(profiler=CLASS),
    "an accelerator by its path": trainer(accelerator=CLASS),
    "keywords of a logger": trainer(
        limit_val_batches=7.5,  # refused after the logger is built
        logger=spec("TensorBoardLogger", save_dir=".") | {"dict_kwargs": {"comment": {"class_path": CLASS}}},
    ),
}

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
    ("study", "--config", "report.yaml"),
    ("study", "--config", "report.yaml", "--report_only"),
)


Answer = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder from a stranger: a module, a corpus whose documents are commands, a run and studies."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "sentinel.py").write_text(SENTINEL)
    (folder / "corpus").mkdir()
    for number in range(20):
        (folder / f"corpus/{number}.txt").write_text("touch called #" + f" a word {number}" * 20)
    evil = write_config(folder / "filter.yaml", source(keep=FUNCTION))
    write_config(folder / "data.yaml", source(keep=FUNCTION)["data"])
    write_config(folder / "empty.yaml", {"data": {"val_share": 0.2}})
    run = folder / "stranger"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes(evil.read_bytes())
    (run / "checkpoints/last.ckpt").write_bytes(b"not read")
    study = {"name": "tiny", "config": tiny_config(folder / "corpus", max_steps=1), "seeds": [0]}
    studies = {
        "base": {"base": ["filter.yaml"]},
        "variants": {"variants": {"evil": {"trainer.callbacks": [{"class_path": CLASS}]}}},
        "report": {"report": ["sentinel.MyTable"]},
    }
    del study["config"]["data"]["sources"]
    for name, part in studies.items():
        write_config(folder / f"{name}.yaml", study | part)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Answer]:
    """What each call answers. They run in one process that has the working folder on its path."""
    calls = {" ".join(call): call for call in ALONE}
    for number, (name, config) in enumerate((CONFIGS | REFUSED_BY_LIGHTNING).items()):
        write_config(folder / f"{number}.yaml", config)
        calls[name] = ("fit", "--config", f"{number}.yaml")
    for number, (name, text) in enumerate(TEXTS.items()):
        (folder / f"text{number}.yaml").write_text(text)
        calls[name] = ("fit", "--config", f"text{number}.yaml")
    (folder / "calls.json").write_text(json.dumps(list(calls.values())))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(zip(calls, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", [*CONFIGS, *TEXTS, *map(" ".join, ALONE)])
def test_no_call_runs_code(answers: dict[str, Answer], name: str) -> None:
    answer = answers[name]
    assert answer["left"] == [], answer["errors"]
    assert answer["status"] == 2, answer["errors"]
    said = answer["errors"].splitlines()[-1]
    assert said.startswith("error: ")
    assert len(said) <= 300
    assert answer["out"] == ""


@pytest.mark.parametrize("name", REFUSED_BY_LIGHTNING)
def test_no_value_that_lightning_reads_runs_code(answers: dict[str, Answer], name: str) -> None:
    assert answers[name]["left"] == []
    assert answers[name]["status"] == 2


def test_a_refusal_names_the_option_the_value_and_what_to_do(answers: dict[str, Answer]) -> None:
    said = {
        name: re.sub(r"^error: (config file '\d+\.yaml': )?", "", answer["errors"]) for name, answer in answers.items()
    }
    assert said["a filter"] == (
        "data.sources.keep is os.system: a function must be in a module that --trust names; to use this one, add "
        "--trust os\n"
    )
    assert said["a callback"] == (
        f"trainer.callbacks is {CLASS}, which is not a known class of lightning_gpt, Lightning or torch; "
        f"to use it, add --trust sentinel\n"
    )
    assert said["a method that unpickles"].startswith(
        "data.sources.keep is lightning_gpt.training.module.GPTModule.load_from_checkpoint "
    )
    assert said["a method that downloads"].startswith(
        "data.sources[0].keep is lightning.pytorch.loggers.wandb.WandbLogger.download_artifact: a function must "
    )


@pytest.mark.parametrize("study", ["base.yaml", "variants.yaml"])
def test_no_cell_of_a_study_runs_code(folder: Path, study: str) -> None:
    done = run_command("study", "--config", study, cwd=folder)
    assert done.returncode == 2
    assert "add --trust sentinel\n" in done.stderr
    assert not (folder / "imported").exists()


def test_no_environment_variable_runs_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_FIT__TRAINER__CALLBACKS", json.dumps([{"class_path": CLASS}]))
    done = run_command("fit", cwd=folder)
    assert done.returncode == 2
    assert f"trainer.callbacks is {CLASS}, " in done.stderr
    assert not (folder / "imported").exists()
