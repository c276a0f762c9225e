"""``convert --consolidate``: a checkpoint as one file, and back."""

from pathlib import Path

import pytest
import torch

from lightning_gpt import load
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config

GENERATE = ("--prompt", "The", "--max_new_tokens", "12", "--temperature", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consolidate")
    config = tiny_config(tiny_corpus(folder / "corpus.txt"), max_steps=10, val_check_interval=10)
    write_config(folder / "run.yaml", config)
    must_run("fit", "--config", "run.yaml", cwd=folder)
    return folder


def convert(folder: Path, source: str, output: str, *more: str) -> None:
    must_run("convert", "--source", source, "--output", output, "--consolidate", "true", *more, cwd=folder)


def test_a_training_goes_on_from_what_comes_back(trained: Path) -> None:
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    convert(trained, last, "one.safetensors")
    convert(trained, "one.safetensors", "back.ckpt")
    convert(trained, "back.ckpt", "two.safetensors")
    assert (trained / "one.safetensors").read_bytes() == (trained / "two.safetensors").read_bytes()
    was, now = (load(trained / name).state_dict() for name in (last, "back.ckpt"))
    assert all(torch.equal(tensor, now[name]) for name, tensor in was.items())
    texts = [must_run("generate", "--checkpoint", name, *GENERATE, cwd=trained).stdout for name in (last, "back.ckpt")]
    assert texts[0] == texts[1]
    more = ("--config", "run.yaml", "--trainer.max_steps", "12", "--ckpt_path", "back.ckpt")
    assert "after step 10" in must_run("fit", *more, cwd=trained).stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--family", "llama"), "family 'llama' changes nothing with consolidate: leave family out"),
        (("--revision", "main"), "revision 'main' changes nothing with consolidate: leave revision out"),
        (("--tokenizer", "false"), "tokenizer False changes nothing with consolidate: leave tokenizer out"),
        (("--shard_size", "1GB"), "shard_size '1GB' changes nothing with consolidate: leave shard_size out"),
        (("--source", "run.yaml"), "run.yaml"),
        (("--output", "run.yaml"), "run.yaml exists; choose another output, or delete it"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(trained: Path, options: tuple[str, ...], expected: str) -> None:
    call = ("--source", "runs/tiny/version_0/checkpoints/last.ckpt", "--output", "no.safetensors")
    done = run_command("convert", *call, "--consolidate", "true", *options, cwd=trained)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
    assert not (trained / "no.safetensors").exists()
