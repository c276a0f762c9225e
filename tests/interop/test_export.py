"""What goes out besides weights in one file: shards, the generation config, the model card."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from lightning_gpt.checkpoint import Checkpoint
from tests.interop.published import make
from tests.interop.published_tokenizers import save
from tests.processes import run_forked

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [0, 7], "_from_model_config": True}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("export")
    tokenizer = save("smollm2", folder / "tokenizer")
    size = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    there = make("llama", folder / "there", vocab_size=size)
    for file in tokenizer.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    (there / "generation_config.json").write_text(json.dumps(SAMPLED))
    ours = ["--source", "ours/model.ckpt"]
    calls = [
        ["--source", "there", "--output", "ours"],
        [*ours, "--output", "whole"],
        ["--source", "ours", "--output", "sharded", "--shard_size", "20KB"],
        ["--source", "sharded", "--output", "again", "--compare", "false"],
        [*ours, "--output", "wrong", "--shard_size", "many"],
    ]
    (folder / "calls.json").write_text(json.dumps([["convert", *call] for call in calls]))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_model_above_the_size_goes_out_in_shards_and_comes_in_again(converted: Any) -> None:
    folder, said = converted
    for answer in said[:4]:
        assert answer["status"] == 0, answer["errors"]
    assert sorted(path.name for path in (folder / "whole").glob("*.safetensors*")) == ["model.safetensors"]
    index = json.loads((folder / "sharded" / "model.safetensors.index.json").read_text())
    files = sorted((folder / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    assert {path.name for path in files} == set(index["weight_map"].values())
    held = {path.name: load_file(path) for path in files}
    whole = load_file(folder / "whole" / "model.safetensors")
    assert {name: file for file, tensors in held.items() for name in tensors} == index["weight_map"]
    for name, file in index["weight_map"].items():
        assert torch.equal(held[file][name], whole[name])
    sizes = {file: sum(tensor.nbytes for tensor in tensors.values()) for file, tensors in held.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= 20_000 or len(held[file]) == 1 for file, size in sizes.items())
    first, again = (Checkpoint.read(folder / name / "model.ckpt").content["state_dict"] for name in ("ours", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    models = [AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("sharded", "there")]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_a_size_that_is_none_is_refused(converted: Any) -> None:
    folder, said = converted
    assert said[4]["status"] == 2
    assert "shard_size is 'many'; it must be a size like 5GB, 500MB or 20KB" in said[4]["errors"]
    assert not (folder / "wrong").exists()


def test_the_generation_config_comes_along_and_says_how_to_sample(converted: Any) -> None:
    folder, said = converted
    assert "published to be sampled with --temperature 0.6 --top_p 0.9\n" in said[0]["out"]
    was, now = (GenerationConfig.from_pretrained(folder / name).to_dict() for name in ("there", "whole"))
    assert {name: value for name, value in was.items() if value is not None and now[name] != value} == {}
    assert now["eos_token_id"] == [0, 7]
    (folder / "again.json").write_text(json.dumps([["generate", "--checkpoint", "ours/model.ckpt", "--prompt", "a"]]))
    assert run_forked("tests.many_calls", "again.json", cwd=folder).returncode == 0


def test_a_model_card_says_what_is_known_and_its_code_runs(converted: Any) -> None:
    folder, said = converted
    card = ModelCard.load(folder / "whole" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lightning-gpt"],
    }
    assert "| class | `LlamaForCausalLM` |" in card.text
    assert "steps of training" not in card.text  # it was trained elsewhere, and not for 0 steps
    (compared,) = re.findall(r"\| beside lightning_gpt \| (.*) \|", card.text)
    assert compared in said[1]["out"]
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"whole"', repr(str(folder / "whole"))), names)
    ids = names["tokenizer"]("a text", return_tensors="pt").input_ids
    assert f"{sum(parameter.numel() for parameter in names['model'].parameters()):,}, float32" in card.text
    assert names["model"](ids).logits.shape == (*ids.shape, len(names["tokenizer"]))
