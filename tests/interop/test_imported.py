"""What can be done with a published model once it is converted: trained further, in whole or by adapters; studied."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from lightning_gpt.checkpoint import LORA_KEY, Checkpoint
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.interop.convert import into_folder
from lightning_gpt.loading import load
from lightning_gpt.models.adapters import LoRA, adapt, merged
from tests.interop.published import make
from tests.interop.published_tokenizers import CORPUS, save
from tests.processes import must_run, run_forked, write_config

STEPS, MIDDLE = 6, 3
FIRST = ("--weights", "ours/model.ckpt", "--config", "data.yaml")
LORA = ("--model.lora.rank", "3", "--model.lora.alpha", "6", "--model.lora.dropout", "0.1")
PLAINLY = ("--diagnostics.enabled", "false", "--trainer.limit_val_batches", "0")
EACH = ("--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.every_n_train_steps={MIDDLE}")
ALL = ("--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model ``there``, converted to ``ours``, and in ``runs`` a run from its weights, and of adapters."""
    folder = tmp_path_factory.mktemp("imported")
    make("llama", folder / "there", vocab_size=760)
    for file in save("smollm2", folder / "smollm2").iterdir():
        (folder / "there" / file.name).write_bytes(file.read_bytes())
    (folder / "texts").mkdir()
    for number, text in enumerate(CORPUS[:8]):
        (folder / "texts" / f"{number}.txt").write_text(text[:4000])
    trainer = {
        "max_steps": STEPS,
        "max_epochs": -1,
        "val_check_interval": MIDDLE,
        "check_val_every_n_epoch": None,
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "log_every_n_steps": 1,
    }
    data = {
        "sources": [{"class_path": "Files", "init_args": {"paths": "texts/*.txt"}}],
        "split_by": "position",
        "batch_size": 4,
        "shuffle_window": 16,
    }
    own = {"dropout": 0.1, "block_size": 32, "optimization": {"lr": 1e-3}}
    common = {"samples": {"max_new_tokens": 4}, "trainer": trainer, "data": data}
    write_config(folder / "data.yaml", {**common, "model": own})
    must_run("convert", "--source", "there", "--output", "ours", cwd=folder)
    must_run("fit", *FIRST, "--name", "full", *EACH, *ALL, cwd=folder)
    must_run("fit", *FIRST, "--name", "lora", *LORA, *EACH, *ALL, cwd=folder)
    return folder


def loss_of(output: str) -> float:
    return float(re.search(r"val/loss\s+([\d.]+)", output)[1])


def first_loss(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return next(each["initial/loss"] for each in map(json.loads, lines) if "initial/loss" in each)


def state(path: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.read(path).state()


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_run_starts_from_the_weights_and_resumes_to_the_bit_without_them(name: str, folder: Path) -> None:
    config = ("--config", "data.yaml", "--config", "ours/model.yaml", "--model.block_size", "32")
    said = must_run("validate", *config, "--ckpt_path", "ours/model.ckpt", cwd=folder).stdout
    run = folder / "runs" / name / "version_0"
    assert first_loss(run) == pytest.approx(loss_of(said), abs=2e-4)
    weights = folder / "ours/model.ckpt"
    weights.rename(folder / "gone")
    try:
        middle = str(run / f"checkpoints/step={MIDDLE}.ckpt")
        must_run("fit", "--config", str(run / "config.yaml"), "--ckpt_path", middle, cwd=folder)
    finally:
        (folder / "gone").rename(weights)
    whole, resumed = (Checkpoint.read(folder / f"runs/{name}/version_{n}/checkpoints/last.ckpt") for n in (0, 1))
    assert whole.content["global_step"] == STEPS
    for key, weight in whole.state().items():
        assert torch.equal(resumed.state()[key], weight), key
    states = (each.content["optimizer_states"][0]["state"] for each in (whole, resumed))
    for ours, theirs in zip(*(each.values() for each in states), strict=True):
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])


def test_all_weights_or_the_adapters_alone_are_trained(folder: Path) -> None:
    start, full = state(folder / "ours/model.ckpt"), state(folder / "runs/full/version_0/checkpoints/last.ckpt")
    lora = state(folder / "runs/lora/version_0/checkpoints/last.ckpt")
    assert all(not torch.equal(full[name], weight) for name, weight in start.items())
    assert all(torch.equal(lora[name], weight) for name, weight in start.items())
    adapters = [name for name in lora if name not in start]
    assert len(adapters) == 2 * 4 * 3  # A and B of four matrices in each of three layers
    assert all(lora[name].norm() > 0 for name in adapters)
    trained = Checkpoint.read(folder / "runs/lora/version_0/checkpoints/last.ckpt").content["optimizer_states"][0]
    assert set(trained["state"]) == {f"model.{name}" for name in adapters}


def test_adapters_are_merged_where_a_checkpoint_is_read(folder: Path) -> None:
    path = folder / "runs/lora/version_0/checkpoints/last.ckpt"
    read = Checkpoint.read(path)
    apart = Checkpoint.read(folder / "ours/model.ckpt").build()
    adapt(apart, LoRA(rank=3, alpha=6.0))
    apart.load_state_dict(read.state())
    doubled = Checkpoint(
        path, {**read.content, "state_dict": {k: v.double() for k, v in read.content["state_dict"].items()}}
    )
    plain = apart.double().eval(), read.build().double()
    plain[1].load_state_dict(doubled.weights())
    ids = torch.randint(760, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain[0](ids), plain[1](ids), rtol=0, atol=1e-10)
    must_run("convert", "--source", str(path), "--output", "merged", "--merge", "true", cwd=folder)
    assert Checkpoint.read(folder / "merged/model.ckpt").content["global_step"] == read.content["global_step"] > 0
    merged = load(folder / "merged/model.ckpt")
    for name, weight in load(path).state_dict().items():
        assert torch.equal(merged.state_dict()[name], weight)
    call = ("--prompt", "def f", "--max_new_tokens", "8", "--strategy", "greedy")
    texts = [
        must_run("generate", "--checkpoint", each, *call, cwd=folder).stdout
        for each in (str(path), "merged")  # the folder that convert made, for the checkpoint in it
    ]
    assert texts[0] == texts[1]
    lora, plainly = (
        must_run("validate", "--config", config, "--ckpt_path", ckpt, *more, cwd=folder).stdout
        for config, ckpt, more in (
            ("runs/lora/version_0/config.yaml", str(path), ()),
            ("data.yaml", "merged/model.ckpt", ("--config", "merged/model.yaml", "--model.block_size", "32")),
        )
    )
    assert loss_of(lora) == pytest.approx(loss_of(plainly), abs=1e-4)


def test_adapters_are_merged_once_for_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr("lightning_gpt.checkpoint.merged", lambda *given: calls.append(given) or merged(*given))
    read = Checkpoint.read(folder / "runs/lora/version_0/checkpoints/last.ckpt")
    assert list(into_folder(read, tmp_path / "out", None, None, "5GB"))[-1] == f"written: {tmp_path / 'out'}"
    assert len(calls) == 1


def test_the_adapters_go_to_peft_and_the_merged_model_to_transformers(folder: Path) -> None:
    pytest.importorskip("peft")
    path = "runs/lora/version_0/checkpoints/last.ckpt"
    said = must_run("convert", "--source", path, "--output", "adapters", "--adapters_for", "there", cwd=folder).stdout
    assert "100.0% of first choices agree" in said  # peft and transformers on one side, merged here on the other
    assert (folder / "adapters/adapter_model.safetensors").stat().st_size < 60_000
    assert (
        "100.0% of first choices agree" in must_run("convert", "--source", path, "--output", "out", cwd=folder).stdout
    )
    step = Checkpoint.read(folder / path).content["global_step"]
    assert f"| steps of training | {step} |" in (folder / "out/README.md").read_text()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bloom"])
def test_families_with_transposed_and_interleaved_matrices(name: str, tmp_path: Path) -> None:
    """Their q, k and v are one published matrix: transposed in GPT-2, sorted by head in the others."""
    pytest.importorskip("peft")
    make(name, tmp_path / "there")
    must_run("convert", "--source", "there", "--output", "ours", "--compare", "false", cwd=tmp_path)
    read, lora = Checkpoint.read(tmp_path / "ours/model.ckpt"), LoRA(rank=2, parts=("attention",))
    model = read.build()
    adapt(model, lora)
    for name_, weight in model.named_parameters():
        if name_.endswith(("_a", "_b")):
            torch.nn.init.normal_(weight, std=0.1)
    stored = {f"model.{key}": weight.detach() for key, weight in model.state_dict().items()}
    write_checkpoint({**read.content, LORA_KEY: lora.described(), "state_dict": stored}, tmp_path / "lora.ckpt")
    call = ("convert", "--source", "lora.ckpt", "--output", "adapters", "--adapters_for", "there")
    assert "100.0% of first choices agree" in must_run(*call, cwd=tmp_path).stdout


def test_adapters_that_do_not_fit_are_refused(folder: Path) -> None:
    read = Checkpoint.read(folder / "runs/lora/version_0/checkpoints/last.ckpt")
    name = "model.blocks.0.ffn.up.adapter_b"
    without = {key: weight for key, weight in read.content["state_dict"].items() if key != name}
    wider = {**read.content["state_dict"], name: torch.zeros(3, 3)}
    for state_dict in (without, wider):
        with pytest.raises(CallError, match="has adapters that do not fit its weights"):
            Checkpoint(read.path, {**read.content, "state_dict": state_dict}).build()
    with pytest.raises(CallError, match="does not describe adapters of this version"):
        Checkpoint(read.path, {**read.content, LORA_KEY: {"rank": 0, "parts": []}}).build()


REFUSED: list[tuple[list[str], str]] = [
    (["--model.dim", "32"], "has a different architecture: dim is 24 there and 32 here"),
    (["--data.tokenizer", "gpt2"], "vocab_size is 760 there and 50257 here"),
    (["--data.tokenizer", "760"], "was trained with a different tokenizer than this run uses"),
    (["--weights", "none.ckpt"], "none.ckpt"),
    (["--weights", "there/config.json"], "there/config.json"),
    (["--grow.checkpoint", "ours/model.ckpt"], "weights and grow.checkpoint both say what the run starts from"),
    (
        [*LORA, "--model.optimization.optimizer", "muon"],
        "model.lora and optimization.optimizer muon cannot be combined",
    ),
    ([*LORA, "--weights", "null"], "model.lora trains adapters of a trained model and leaves the model as it is"),
    (
        [*LORA, "--parallel.shard", "2", "--trainer.devices", "2"],
        "model.lora and parallel (shard 2) cannot be combined",
    ),
    ([*LORA, "--model.lora.parts", "[]"], "lora.parts is empty; allowed: attention, ffn, or both"),
    (["--ckpt_path", "ours/model.ckpt"], "to train from its weights, give --weights instead of --ckpt_path"),
    (["--ckpt_path", "runs/lora/version_0/checkpoints/last.ckpt"], "was trained with model.lora"),
]


def test_what_cannot_be_is_refused_in_a_line(folder: Path) -> None:
    calls = [["fit", *FIRST, "--name", f"refused{number}", *options] for number, (options, _) in enumerate(REFUSED)]
    full = "runs/full/version_0/checkpoints/last.ckpt"
    calls += [
        ["convert", "--source", full, "--output", "x", "--merge", "true"],
        ["convert", "--source", full, "--output", "x", "--adapters_for", "there"],
        ["convert", "--source", full, "--output", "x", "--adapters_for", "there", "--merge", "true"],
        ["plan", "--config", "runs/lora/version_0/config.yaml"],
    ]
    expected = [message for _, message in REFUSED]
    expected += ["has no adapters to merge", "has no adapters: its run was not given model.lora", "give one of them"]
    expected += ["plan counts a training of all weights"]
    (folder / "calls.json").write_text(json.dumps(calls))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    for call, message, answer in zip(calls, expected, json.loads(done.stdout), strict=True):
        assert answer["status"] == 2, (call, answer)
        assert message in answer["errors"].splitlines()[-1], (call, answer["errors"])
    assert not list(folder.glob("runs/refused*/version_*"))


def test_the_instruments_take_it(folder: Path) -> None:
    ours = ("--checkpoint", "ours/model.ckpt")
    said = must_run("inspect", *ours, "--text", "def f(x): return x", "--ablate", "all", cwd=folder).stdout
    assert "ablation.png" in said
    layers = json.loads((folder / "runs/full/version_0/layers.json").read_text())
    assert [entry["step"] for entry in layers] == [0, MIDDLE, STEPS]
    assert len(layers[0]["token_cosine"]) == 4


def test_its_speed_is_measured(folder: Path) -> None:
    sizes = ("--workload.time", "16", "--workload.batch", "2", "--workload.prompt", "4", "--workload.new_tokens", "4")
    said = must_run("bench", "--checkpoint", "ours/model.ckpt", "--quick", "true", *sizes, cwd=folder).stdout
    lines = [line for line in said.splitlines() if line.startswith("trained: ")]
    assert "share of the fp32 product peak in a step of ours/model.ckpt, 2 x 16 tokens" in lines[0]
    assert "4 tokens after 4 by ours/model.ckpt, one prompt" in lines[-1]
    assert all(f"{name} " in lines[-1] for name in ("fp32", "bf16", "int8"))


def test_a_study_starts_its_cells_from_the_weights(folder: Path) -> None:
    config = yaml.safe_load((folder / "data.yaml").read_text())
    config["trainer"]["max_steps"], config["weights"] = 2, str(folder / "ours/model.ckpt")
    config["trainer"]["val_check_interval"], config["diagnostics"] = 2, {"enabled": False}
    config["data"]["sources"][0]["init_args"]["paths"] = str(folder / "texts/*.txt")
    content = {
        "name": "tuned",
        "config": config,
        "variants": {"full": {}, "lora": {"model.lora.rank": 2}},
        "measure": ["val/loss", "initial/loss"],
    }
    write_config(folder / "study.yaml", content)
    must_run("study", "--config", "study.yaml", "--folder", "study", cwd=folder)
    cells = json.loads((folder / "study/results.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["finished", "finished"]
    first = first_loss(folder / "runs/full/version_0")
    for cell in cells:
        assert cell["values"]["initial/loss"] == pytest.approx(first, abs=1e-4)


def test_two_processes_train_the_adapters_as_one(folder: Path) -> None:
    options = (*FIRST, *PLAINLY, *LORA, "--model.lora.dropout", "0", "--model.dropout", "0", "--trainer.max_steps", "2")
    apart = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2")
    must_run("fit", *options, "--name", "one", cwd=folder)
    must_run("fit", *options, *apart, "--name", "two", cwd=folder)
    one, two = (state(folder / f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-6)


def test_a_layout_starts_from_the_weights(folder: Path) -> None:
    options = (*FIRST, *PLAINLY, "--model.dropout", "0", "--trainer.max_steps", "2", "--data.global_batch", "4")
    must_run("fit", *options, "--name", "whole", cwd=folder)
    spread = ("--trainer.devices", "2", "--parallel.shard", "2", "--data.batch_size", "2")
    must_run("fit", *options, *spread, "--name", "spread", cwd=folder)
    one, two = (state(folder / f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("whole", "spread"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-6)
