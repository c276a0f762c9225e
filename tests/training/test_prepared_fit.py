"""A fit on a prepared folder is the fit on the sources, number for number."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.split import SplitName
from tests.processes import must_run, run_command, scalars, tiny_config, tiny_corpus, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a config, the run on its sources (version_0) and the folder prepared from them."""
    folder = tmp_path_factory.mktemp("prepared")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=60, val_check_interval=30)
    content["data"] |= {"packing": "best_fit", "separate_documents": True}
    write_config(folder / "tiny.yaml", content)
    must_run("fit", "--config", "tiny.yaml", cwd=folder)
    tiny_corpus(folder / "other.jsonl", documents=61)
    must_run("prepare", "--config", "tiny.yaml", "--output", "ready", cwd=folder)
    return folder


def test_losses_are_those_of_the_sources(folder: Path) -> None:
    prepared = ("--data.prepared", "ready", "--data.num_workers", "2")
    done = must_run("fit", "--config", "tiny.yaml", *prepared, cwd=folder)
    run = folder / re.search(r"tensorboard --logdir (\S+)", done.stderr)[1]  # type: ignore[index]
    assert scalars(run) == scalars(folder / "runs/tiny/version_0")
    assert "training a vocabulary" not in done.stderr


def test_a_run_goes_on_from_the_sources_to_the_folder(folder: Path) -> None:
    half = ("--trainer.max_steps", "30", "--name", "half")
    must_run("fit", "--config", "tiny.yaml", *half, cwd=folder)
    last = "runs/half/version_0/checkpoints/last.ckpt"
    content = scalars(folder / "runs/tiny/version_0")
    must_run(
        *("fit", "--config", "tiny.yaml", "--data.prepared", "ready", "--ckpt_path", last, "--name", "whole"),
        cwd=folder,
    )
    resumed = scalars(folder / "runs/whole/version_0")
    # the learning rate of a run of 30 steps is another, so the weights are; the data must not be
    rows = {key: value for key, value in resumed.items() if key[0].startswith("data/rows")}
    assert rows
    assert all(content[key] == value for key, value in rows.items())


def test_ids_of_another_tokenizer_are_refused(folder: Path) -> None:
    """They fit into the vocabulary, so that figures of nonsense would be printed."""
    words = [json.dumps({"text": f"zyx{number} wvu qqq{number % 7} " * 20}) for number in range(60)]
    (folder / "strange.jsonl").write_text("\n".join(words))
    sources = ("--data.sources", '[{"class_path":"Files","init_args":{"paths":"strange.jsonl"}}]')
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["data"]["sources"] = yaml.safe_load(sources[1])
    write_config(folder / "strange.yaml", config)
    must_run("prepare", "--config", "strange.yaml", "--output", "strange", cwd=folder)
    call = ("validate", "--config", "strange.yaml", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt")
    must_run(*call, cwd=folder)
    done = run_command(*call, "--data.prepared", "strange", cwd=folder)
    assert done.returncode == 2
    assert "'strange' has token ids of a different tokenizer from the checkpoint's" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("by", ["documents", "position"])
def test_texts_of_a_split_are_those_of_the_sources(by: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which split a text is in is the folder's to say: validation files were never shared out."""
    monkeypatch.chdir(folder)
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    files = {"paths": "corpus.jsonl", "val_paths": "other.jsonl"}
    config["data"] |= {"sources": [{"class_path": "Files", "init_args": files}], "split_by": by}
    write_config(folder / f"{by}.yaml", config)
    must_run("prepare", "--config", f"{by}.yaml", "--output", by, cwd=folder)
    names = ("tokenizer", "val_share", "test_share", "eval_tokens", "split_by")
    options = {name: config["data"][name] for name in names}
    live, ready = (TextData(sources=[Files(**files)], prepared=place, **options) for place in (None, by))
    for split in get_args(SplitName):
        assert list(ready.texts(split)) == list(live.texts(split)) != []


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            ("--data.tokenizer", "gpt2"),
            r"made with other settings: tokenizer is \w+ in the folder and \w+ in the config",
        ),
        (("--data.tokenizer", "280"), r"has a vocabulary of 300 tokens, but tokenizer is 280"),
        (("--data.val_share", "0.2"), r"val_share is 0.1 in the folder and 0.2 in the config"),
        (("--data.sources", '[{"class_path":"PythonReference"}]'), r"has the sources files, but .* python-reference"),
        (
            ("--data.sources", '[{"class_path":"Files","init_args":{"paths":"other.jsonl"}}]'),
            r"of another source 'files': the file corpus.jsonl is missing; the file other.jsonl is new; prepare",
        ),
        (("--data.prepared", "nowhere"), r"prepared folder 'nowhere' does not exist"),
    ],
)
def test_another_configuration_is_refused(folder: Path, change: tuple[str, str], pattern: str) -> None:
    done = run_command("fit", "--config", "tiny.yaml", "--data.prepared", "ready", *change, cwd=folder)
    assert done.returncode == 2
    assert re.search(pattern, done.stderr.splitlines()[-1]), done.stderr
