"""The commands, as they are typed: what they print, write and leave behind."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.loading import load
from lightning_gpt.models import GPT
from lightning_gpt.training.metrics_jsonl import read_metrics
from lightning_gpt.version import described_version
from tests.processes import must_run, run_command, scalars, tiny_config, tiny_corpus, write_config

LIST_IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}


def imports_of(said: str) -> list[str]:
    """The modules that a process has imported, which lists them on standard error."""
    return [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a short fit has run; its output is in ``fit.txt``, the modules that it imported in ``imports.txt``."""
    folder = tmp_path_factory.mktemp("commands")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=40, val_check_interval=20)
    content["data"]["eval_tokens"] = 10**6  # the whole split: a test counts its tokens
    write_config(folder / "tiny.yaml", content)
    done = must_run("fit", "--config", "tiny.yaml", cwd=folder, fresh=True, env=LIST_IMPORTS)
    said = done.stderr.splitlines(keepends=True)
    (folder / "fit.txt").write_text("".join(line for line in said if not line.startswith("import time:")))
    (folder / "imports.txt").write_text("\n".join(imports_of(done.stderr)))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return folder / "runs/tiny/version_0"


def test_a_fit_does_not_import_what_only_unused_metrics_need(folder: Path) -> None:
    found = (folder / "imports.txt").read_text().splitlines()
    assert {"torchmetrics.metric", "lightning.pytorch.trainer.trainer"} <= set(found)
    assert [name for name in found if re.match(r"transformers|scipy", name)] == []


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = must_run("--help", cwd=tmp_path, fresh=True)
    for command in ("fit", "validate", "test", "predict", "generate", "inspect"):
        assert re.search(rf"^  {command} ", done.stdout, re.M)


@pytest.mark.parametrize("command", ["fit", "generate", "inspect"])
def test_every_option_has_a_help_text(command: str, tmp_path: Path) -> None:
    text = must_run(command, "--help", cwd=tmp_path).stdout
    for option in {"fit": ["--name", "--checkpoints.every_n_steps", "--data.tokenizer"]}.get(command, ["--seed"]):
        assert option in text
    ours = re.findall(
        r"^  --(?!trainer|ckpt|help|config|print|seed_e|weights|model\.|model )(\S+).*\n?( .*)?", text, re.M
    )
    assert ours
    for entry in re.split(r"^  --", text, flags=re.M)[1:]:
        name = entry.split()[0]
        if name.startswith(("data.", "checkpoints.", "samples.", "checkpoint", "text", "ids", "top_", "max_")):
            assert re.search(r"[a-z]{3,} [a-z]{2,}", entry.split("\n\n")[0].split(None, 2)[-1]), f"--{name} has no help"


def test_run_folder_has_all_that_is_promised(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "tokenizer/bpe-300.tiktoken"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["seed_everything"] == 1


def test_summary_is_true(folder: Path, run: Path) -> None:
    text = (folder / "fit.txt").read_text()
    values = scalars(run)
    last = math.exp(values["val/loss", 40])
    assert f"{last:,.2f}" in re.search(r"last validation \(step 40\)\s+(\S+)", text)[1]  # type: ignore[index]
    start = re.search(r"initial validation loss ([\d.]+), [+-][\d.]+% from ln\|V\| = ln 300 = 5.7038", text)
    assert start
    assert float(start[1]) == pytest.approx(math.log(300), rel=0.01)
    unigram = float(re.search(r"unigram baseline on the same text\s+(\S+)", text)[1])  # type: ignore[index]
    ratio = float(re.search(r"perplexity is ([\d.]+)x", text)[1])  # type: ignore[index]
    assert ratio == pytest.approx(last / unigram, abs=6e-4)
    assert re.search(r"(?m)^sample: The.*\S", text)
    for command in ("tensorboard --logdir", "lightning-gpt generate", "lightning-gpt inspect", "lightning-gpt fit"):
        assert command in text


def test_unigram_perplexity_is_that_of_the_corpus(folder: Path, run: Path) -> None:
    """Counted here from the documents themselves, in plain Python."""
    from lightning_gpt.data.split import Split

    tokenizer = Checkpoint.read(run / "checkpoints/last.ckpt").tokenizer()
    split, counts, targets = Split(0.1, 0.1), [1] * 300, []
    for line in (folder / "corpus.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        ids = [*tokenizer.encode(text).tolist(), tokenizer.end_of_text]
        if split.of(text) == "train":
            for token in ids:
                counts[token] += 1
        elif split.of(text) == "val":
            targets += ids
    nll = [-math.log(counts[token] / sum(counts)) for token in targets[1:]]
    said = float(re.search(r"unigram baseline on the same text\s+(\S+)", (folder / "fit.txt").read_text())[1])  # type: ignore[index]
    assert said == pytest.approx(math.exp(sum(nll) / len(nll)), abs=0.006)


def test_tensorboard_has_curves_texts_and_heatmaps(run: Path) -> None:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    for tag in ("train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second"):
        assert [event.step for event in events.Scalars(tag)] == list(range(1, 41))
    for tag in ("val/loss", "val/bits_per_byte"):
        assert [event.step for event in events.Scalars(tag)] == [20, 40]
    pictures = [tag for tag in tags["images"] if tag.startswith("attention/")]
    assert pictures
    assert all([event.step for event in events.Images(tag)] == [20, 40] for tag in pictures)
    assert not any("perplexity" in tag for tag in tags["scalars"]), "it says what the loss says"
    assert any(tag.startswith("samples/0") for tag in tags["tensors"])
    written = {line["step"]: line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line}
    for step in range(1, 41):
        loss, perplexity = (written[step][f"train/{name}"] for name in ("loss", "perplexity"))
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_best_checkpoint_is_of_least_validation_loss(run: Path) -> None:
    values = scalars(run)
    best = min((20, 40), key=lambda step: values["val/loss", step])
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert content["global_step"] == best


def test_validate_gives_the_loss_that_training_saw(folder: Path, run: Path) -> None:
    done = must_run("validate", "--ckpt_path", str(run / "checkpoints/last.ckpt"), cwd=folder, fresh=True)
    loss = float(re.search(r"^val/loss ([\d.]+)$", done.stdout, re.M)[1])  # type: ignore[index]
    assert loss == pytest.approx(scalars(run)["val/loss", 40], abs=1e-5)


def test_test_uses_other_text(folder: Path, run: Path) -> None:
    done = must_run("test", "--ckpt_path", str(run / "checkpoints/last.ckpt"), cwd=folder)
    loss = float(re.search(r"^test/loss ([\d.]+)$", done.stdout, re.M)[1])  # type: ignore[index]
    perplexity = float(re.search(r"^test/perplexity ([\d.]+)$", done.stdout, re.M)[1])  # type: ignore[index]
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert loss != pytest.approx(scalars(run)["val/loss", 40], abs=1e-5)


def test_predict_writes_what_the_model_says(folder: Path, run: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    done = must_run("predict", "--ckpt_path", str(last), cwd=folder)
    path = folder / re.search(r"predictions: (\S+)", done.stderr)[1]  # type: ignore[index]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    test = must_run("test", "--ckpt_path", str(last), cwd=folder)
    loss = float(re.search(r"^test/loss ([\d.]+)$", test.stdout, re.M)[1])  # type: ignore[index]
    losses = [value for row in rows for value in row["token_losses"]]
    assert sum(losses) / len(losses) == pytest.approx(loss, abs=1e-3)
    model, tokenizer = load(last), Checkpoint.read(last).tokenizer()
    second = rows[1]
    ids = torch.tensor([[rows[0]["targets"][-1], *second["targets"][:-1]]])
    with torch.no_grad():
        assert model(ids).argmax(-1)[0].tolist() == second["predicted"]
    assert second["text"] == tokenizer.decode(second["targets"])


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_loss_that_is_not_finite_is_null(folder: Path, run: Path) -> None:
    content = read_checkpoint(run / "checkpoints/last.ckpt", mmap=False)
    content["state_dict"]["model.final_norm.weight"][0] = math.nan
    write_checkpoint(content, folder / "nan.ckpt")
    done = must_run("predict", "--config", "tiny.yaml", "--ckpt_path", "nan.ckpt", "--name", "nan", cwd=folder)
    rows = [_strict(line) for line in (folder / "runs/nan/version_0/predictions.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["loss"] is None and set(row["token_losses"]) == {None} for row in rows)
    assert f"the loss of {len(rows)} rows is not finite, which the file has as null" in done.stderr


def test_load_gives_the_bare_model(run: Path) -> None:
    model = load(run / "checkpoints/last.ckpt")
    assert isinstance(model, GPT)
    assert not model.training
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 300)


def test_generate_repeats_with_a_seed_and_differs_without(folder: Path, run: Path) -> None:
    call = ("generate", "--checkpoint", str(run / "checkpoints/last.ckpt"), "--prompt", "abc", "--max_new_tokens", "20")
    texts = [must_run(*call, "--seed", seed, cwd=folder).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("abc")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_generate_with_rounded_weights_writes_text(precision: str, folder: Path, run: Path) -> None:
    call = ("generate", "--checkpoint", str(run / "checkpoints/last.ckpt"), "--prompt", "abc", "--max_new_tokens", "20")
    written = must_run(*call, "--precision", precision, cwd=folder).stdout
    assert written.startswith("abc")
    assert len(written) > 8


def test_generate_with_a_draft_is_greedy_text_all_the_same(folder: Path, run: Path) -> None:
    last = str(run / "checkpoints/last.ckpt")
    call = ("generate", "--checkpoint", last, "--prompt", "abc", "--max_new_tokens", "24", "--strategy", "greedy")
    assert must_run(*call, "--draft", last, cwd=folder).stdout == must_run(*call, cwd=folder).stdout


def test_generate_that_leaves_early_says_how_many_layers_ran(folder: Path, run: Path) -> None:
    call = ("generate", "--checkpoint", str(run / "checkpoints/last.ckpt"), "--prompt", "abc", "--max_new_tokens", "20")
    said = must_run(*call, "--exit_confidence", "1e-9", cwd=folder)
    n_layer = load(run / "checkpoints/last.ckpt").config.n_layer
    assert said.stdout.startswith("abc")
    assert f"early exit: 1.00 of {n_layer} layers per token on average" in said.stderr
    assert n_layer > 1


def test_generate_greedy_is_the_likeliest_token_each_time(folder: Path, run: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    model, tokenizer = load(last), Checkpoint.read(last).tokenizer()
    call = ("generate", "--checkpoint", str(last), "--prompt", "abc", "--max_new_tokens", "40")
    ids = torch.from_numpy(tokenizer.encode("abc")).long()[None]
    expected = model.generate(ids, 40, temperature=0.0)[0].tolist()  # past block_size 32: the context slides
    if tokenizer.end_of_text in expected:
        expected = expected[: expected.index(tokenizer.end_of_text)]
    done = must_run(*call, "--strategy", "greedy", cwd=folder, fresh=True, env=LIST_IMPORTS)
    assert "torch.nn.modules.module" in imports_of(done.stderr)
    assert "lightning" not in imports_of(done.stderr)  # seconds, for nothing
    said = done.stdout
    assert said == tokenizer.decode(expected) + "\n"
    assert must_run(*call, "--top_k", "1", cwd=folder).stdout == said


def test_single_head_starts_within_one_percent_of_ln_v(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs/single_head.yaml"
    short = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.eval_tokens", "2000")
    done = must_run("fit", "--config", str(config), *short, cwd=tmp_path)
    said = re.search(r"initial validation loss ([\d.]+), ([+-][\d.]+)% from ln\|V\| = ln 50,257", done.stderr)
    assert said
    assert abs(float(said[2])) < 1
    assert float(said[1]) == pytest.approx(math.log(50257), rel=0.01)


def test_a_closed_pipe_is_no_traceback(folder: Path, run: Path) -> None:
    import subprocess
    import sys

    call = f"{sys.executable} -m lightning_gpt generate --checkpoint {run}/checkpoints/last.ckpt | head -c 1"
    done = subprocess.run(["bash", "-c", call], cwd=folder, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr


def test_version(tmp_path: Path) -> None:
    said = run_command("--version", cwd=tmp_path, fresh=True).stdout
    assert said == f"lightning-gpt {described_version()}\n"
