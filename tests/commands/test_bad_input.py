"""Each wrong call ends with one line that says what was given and what is allowed, and with its exit status."""

import bz2
import json
import re
from pathlib import Path

import pytest

from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config

FIT = ("fit", "--config", "tiny.yaml")
RESUME = (*FIT, "--ckpt_path", "last.ckpt")
GENERATE = ("generate", "--checkpoint", "last.ckpt")
INSPECT = ("inspect", "--checkpoint", "last.ckpt")


def of_files(name: str, **options: str) -> tuple[str, ...]:
    source = {"class_path": "Files", "init_args": {"paths": name, **options}}
    return (*FIT, "--data.sources", json.dumps([source]))


HUB = json.dumps([{"class_path": "Hub", "init_args": {"path": "wikimedia/wikipedia", "subset": "20231101.en"}}])

# what is typed, the exit status, and a pattern that the one line must hold
CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown command": (("fot",), 2, r"unknown command 'fot'; the commands are fit, validate"),
    "more than help": (("--help", "extra"), 2, r"unexpected argument 'extra' after --help"),
    "more than version": (("--version", "--foo"), 2, r"unexpected argument '--foo' after --version"),
    "unknown option": (
        ("fit", "--trainer.max_stepz", "3"),
        2,
        r"--trainer.max_stepz; did you mean --trainer.max_steps",
    ),
    "unknown model option": (
        ("fit", "--model.nlayer", "3"),
        2,
        r"unknown key 'nlayer' .*did you mean n_layer.*GPTModule",
    ),
    "unknown key in config": (("fit", "--config", "typo.yaml"), 2, r"unknown key 'modle'; did you mean model"),
    "unknown model key in config": (("fit", "--config", "layr.yaml"), 2, r"unknown key 'n_layr'.*n_layer"),
    "unknown source key": (
        (*FIT, "--data.sources", '[{"class_path":"Files","init_args":{"pathz":"x"}}]'),
        2,
        r"unknown key 'pathz' .*Files are paths, column",
    ),
    "unknown source": ((*FIT, "--data.sources", '[{"class_path":"Filez"}]'), 2, r"'Filez'.*Files, Hub"),
    "unknown model": (("fit", "--model", "Foo"), 2, r"'Foo'; known are GPTModule, SingleHeadModule"),
    "stray argument": (("fit", "extra"), 2, r"unexpected argument 'extra'"),
    "text for a number": (("fit", "--trainer.max_steps", "three"), 2, r"max_steps is 'three'; allowed: a whole number"),
    "text for a model number": (("fit", "--model.n_layer", "zero"), 2, r"model.n_layer is 'zero'; .*a whole number"),
    "fraction for a whole number": (("fit", "--data.batch_size", "1.5"), 2, r"data.batch_size is '1.5'; .*whole"),
    "unknown schedule": (("fit", "--model.optimization.schedule", "step"), 2, r"'step'; allowed: 'cosine', 'linear'"),
    "unknown precision": (("fit", "--trainer.precision", "bf17"), 2, r"'bf17'; allowed: .*'bf16-mixed'"),
    "unknown strategy": ((*FIT, "--trainer.strategy", "foo"), 2, r"trainer: .*'foo'.*ddp"),
    "negative learning rate": ((*FIT, "--model.optimization.lr", "-1"), 2, r"lr is -1.0; .*positive"),
    "missing config": (("fit", "--config", "nope.yaml"), 2, r"config file 'nope.yaml' cannot be read: No such file"),
    "config is a folder": (("fit", "--config", "."), 2, r"config file '.' cannot be read: Is a directory"),
    "config is no YAML": (("fit", "--config", "bad.yaml"), 2, r"config file 'bad.yaml', line 2 is not valid YAML"),
    "config is a list": (("fit", "--config", "list.yaml"), 2, r"'list.yaml' does not contain a mapping"),
    "dim not divisible": (
        (*FIT, "--model.n_head", "3"),
        2,
        r"dim 32 is not divisible by n_head 3; n_head may be 1, 2, 4",
    ),
    "no layers": ((*FIT, "--model.n_layer", "0"), 2, r"n_layer is 0; .*from 1 to"),
    "negative width": ((*FIT, "--model.dim", "-8"), 2, r"dim is -8; .*from 1 to"),
    "negative block": ((*FIT, "--model.block_size", "-1"), 2, r"block_size is -1; .*from 1 to"),
    "empty batch": ((*FIT, "--data.batch_size", "0"), 2, r"batch_size is 0; .*from 1 to"),
    "dropout above 1": ((*FIT, "--model.dropout", "1.5"), 2, r"dropout is 1.5; .*below 1"),
    "shares above 1": ((*FIT, "--data.val_share", "1.5"), 2, r"val_share is 1.5; .*at least 0 and below 1"),
    "tiny vocabulary": ((*FIT, "--data.tokenizer", "12"), 2, r"tokenizer is 12; .*from 257 to 1,048,576 or text"),
    "missing tokenizer": ((*FIT, "--data.tokenizer", "nope.tiktoken"), 2, r"'nope.tiktoken' cannot be read.*gpt2"),
    "tokenizer is no table": ((*FIT, "--data.tokenizer", "bad.yaml"), 2, r"bad.yaml, line 1: .*not a base64 token"),
    "missing data file": (of_files("nope.txt"), 2, r"data file 'nope.txt' does not exist"),
    "unreadable data file": (of_files("secret"), 2, r"data file 'secret' is not of a supported kind \(.txt"),
    "data folder without text": (of_files("void"), 2, r"data folder 'void' contains no supported file \(.txt"),
    "empty corpus": (of_files("empty.txt"), 2, r"'files' has no training document: none of the 0 documents"),
    "shorter than a block": (
        (*of_files("few.txt"), "--data.tokenizer", "gpt2"),
        2,
        r"source 'files' has \d+ training tokens, less than one block: block_size 32 needs 33, and .* 4 rows 132; add",
    ),
    "no validation documents": (
        (*of_files("long.txt"), "--data.val_share", "0", "--data.test_share", "0", "--data.tokenizer", "gpt2"),
        2,
        r"the val split is empty: val_share is 0.0, .* none of 1 documents; raise the share, name files",
    ),
    "batch above the corpus": ((*FIT, "--data.batch_size", "4000"), 2, r"one optimizer step takes 4000"),
    "invalid UTF-8": (of_files("latin.txt"), 1, r"latin.txt, line 2: invalid UTF-8 \(byte 0xe9"),
    "invalid UTF-8 in a later line": (of_files("latin.jsonl"), 1, r"latin.jsonl, line 2: invalid UTF-8"),
    "invalid JSON": (of_files("bad.jsonl"), 1, r"bad.jsonl, line 2: invalid JSON \(Expecting value, column 10"),
    "JSON that is no text": (of_files("number.jsonl"), 1, r"number.jsonl, line 1: 'text' holds int, not text"),
    "unknown column": (of_files("other.jsonl"), 2, r"other.jsonl, line 1 has no field 'text'; its fields: 'body'"),
    "no Parquet": (of_files("x.parquet"), 1, r"x.parquet cannot be read as Parquet"),
    "no bzip2": (of_files("x.xml.bz2"), 1, r"x.xml.bz2 cannot be read as a Wikipedia dump"),
    "dump cut short": (of_files("cut.xml.bz2"), 1, r"cut.xml.bz2 cannot be read as a Wikipedia dump"),
    "Hub without network": ((*FIT, "--data.sources", HUB), 1, r"Hub cannot be reached .*configs/data/embedded.yaml"),
    "validation inside a step": (
        (*FIT, "--trainer.accumulate_grad_batches", "3"),
        2,
        r"validation every 5 micro-batches falls inside an optimizer step of 3",
    ),
    "name that leaves the runs": ((*FIT, "--name", "../../x"), 2, r"name is '../../x'; allowed: a folder below runs"),
    "name of nothing": ((*FIT, "--name", ""), 2, r"name is ''; allowed: a folder below runs"),
    "name with a line break": ((*FIT, "--name", "a\nb"), 2, r"name is 'a\\nb'; allowed: .* no control character"),
    "long name": ((*FIT, "--name", "x" * 5000), 2, r"name is 'x+…x+'; allowed: .* at most 200 bytes per part"),
    "empty path": (of_files(""), 2, r"source 'files' has an empty path in paths; write \. for the working folder"),
    "checkpoint is a folder": ((*FIT, "--ckpt_path", "void"), 2, r"checkpoint 'void' is a folder; name a file in it"),
    "missing checkpoint": ((*FIT, "--ckpt_path", "nope.ckpt"), 2, r"checkpoint 'nope.ckpt' does not exist"),
    "checkpoint cut short": ((*FIT, "--ckpt_path", "short.ckpt"), 2, r"'short.ckpt' \(50,000 bytes\) .*truncated"),
    "empty checkpoint": ((*FIT, "--ckpt_path", "empty.ckpt"), 2, r"'empty.ckpt' \(0 bytes\) is empty"),
    "other depth": ((*RESUME, "--model.n_layer", "1"), 2, r"different architecture: n_layer is 2 there and 1 here"),
    "other model": ((*RESUME, "--model", "SingleHeadModule"), 2, r"holds a gpt but the config builds a single_head"),
    "other order of data": ((*RESUME, "--data.seed", "7"), 2, r"resume: seed changed from 1 to 7, .*order of the data"),
    "generate without checkpoint": (("generate",), 2, r"required and missing: --checkpoint"),
    "generate from a cut checkpoint": (("generate", "--checkpoint", "short.ckpt"), 2, r"truncated"),
    "prompt too long": ((*GENERATE, "--prompt", "word " * 99), 2, r"prompt has \d+ tokens .*block_size\) is 32"),
    "id outside the vocabulary": ((*GENERATE, "--ids", "[1,999]"), 2, r"id 999 is outside the vocabulary of 300"),
    "top_p above 1": ((*GENERATE, "--top_p", "2"), 2, r"top_p is 2.0; .*at most 1"),
    "top_k of nothing": ((*GENERATE, "--top_k", "0"), 2, r"top_k is 0; .*from 1 to"),
    "negative temperature": ((*GENERATE, "--temperature", "-1"), 2, r"temperature is -1.0"),
    "unknown strategy of drawing": (
        (*GENERATE, "--strategy", "best"),
        2,
        r"'best'; allowed: 'multinomial', 'greedy', 'beam'",
    ),
    "layer out of range": ((*INSPECT, "--layer", "9"), 2, r"layer is 9; this model has 2 layers \(allowed: 0 to 1\)"),
    "misspelt option of inspect": (("inspect", "--chekpoint", "x"), 2, r"--chekpoint; did you mean --checkpoint"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained model and every kind of broken file."""
    folder = tmp_path_factory.mktemp("bad")
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=5, val_check_interval=5)
    write_config(folder / "tiny.yaml", config)
    must_run(*FIT, cwd=folder)
    checkpoint = (folder / "runs/tiny/version_0/checkpoints/last.ckpt").read_bytes()
    (folder / "void").mkdir()
    for name, content in {
        "last.ckpt": checkpoint,
        "short.ckpt": checkpoint[:50_000],
        "empty.ckpt": b"",
        "bad.yaml": b"model: [3\n",
        "list.yaml": b"- 3\n",
        "typo.yaml": b"modle: 3\n",
        "layr.yaml": b"model:\n  class_path: GPTModule\n  init_args: {n_layr: 3}\n",
        "empty.txt": b"",
        "few.txt": b"just a few words",
        "long.txt": b"many words " * 500,
        "latin.txt": b"a good line\na b\xe9d line\n",
        "latin.jsonl": b'{"text": "fine"}\n{"text": "b\xe9d"}\n',
        "bad.jsonl": b'{"text": "fine"}\n{"text": oops}\n',
        "number.jsonl": b'{"text": 3}\n',
        "other.jsonl": b'{"body": "fine"}\n',
        "x.parquet": b"nope",
        "x.xml.bz2": b"nope",
        "cut.xml.bz2": bz2.compress(b"<mediawiki><page>"),
        "secret": b"text without a suffix",
    }.items():
        (folder / name).write_bytes(content)
    return folder


# called in fresh interpreters too: a command that is none, and the first, middle and last thing that commands look at
FRESH = ("unknown command", "unknown option", "empty corpus", "top_p above 1")


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        *(pytest.param(name, False, id=name) for name in CASES),
        *(pytest.param(name, True, id=f"{name}, fresh") for name in FRESH),
    ],
)
def test_wrong_call(name: str, fresh: bool, folder: Path) -> None:
    args, status, pattern = CASES[name]
    done = run_command(*args, cwd=folder, fresh=fresh)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0], "the error must be the last line"
    assert re.search(pattern, errors[0]), errors[0]
    assert done.returncode == status, errors[0]
    assert len(errors[0]) < 400, "one line that a person can read"
    original = (folder / "runs/tiny/version_0/checkpoints/last.ckpt").read_bytes()
    assert (folder / "last.ckpt").read_bytes() == original, "a wrong call loses nothing"


def test_debug_shows_the_traceback(folder: Path) -> None:
    done = run_command("generate", "--checkpoint", "nope.ckpt", "--debug", cwd=folder)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: checkpoint 'nope.ckpt' does not exist"
