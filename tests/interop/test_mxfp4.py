"""gpt-oss in four bits against the conversion of transformers, through the real command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from lightning_gpt.checkpoint import Checkpoint
from tests.interop.published import MODELS, make
from tests.processes import run_forked

WIDE = {**MODELS["gpt_oss"][1], "hidden_size": 64, "intermediate_size": 32}
"""Widths that are multiples of the 32 numbers that share a scale."""


def packed(folder: Path, change: Any = None) -> None:
    """Put random bytes in the place of the experts' matrices, as the published weights are."""
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(100, 132, shape, generator=generator, dtype=torch.uint8)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))


def without_scales(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]


def of_another_form(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.experts.down_proj_blocks"
    tensors[name] = tensors[name][..., :8].contiguous()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("mxfp4")
    for name, change in (("there", None), ("no scales", without_scales), ("other", of_another_form)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "gpt_oss", ("gpt_oss", WIDE))
            packed(make("gpt_oss", folder / name, torch.bfloat16), change)
    packed(make("llama", folder / "llama"))
    calls = [["--source", name, "--output", f"of {name}"] for name in ("there", "no scales", "other", "llama")]
    calls.append(["--source", "of there/model.ckpt", "--output", "back"])
    (folder / "calls.json").write_text(json.dumps([["convert", *call, "--compare", "false"] for call in calls]))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_every_number_is_that_of_transformers_and_goes_out_in_bf16(said: Any) -> None:
    folder, answers = said
    for answer in (answers[0], answers[4]):
        assert answer["status"] == 0, answer["errors"]
    there, back = load_file(folder / "there" / "model.safetensors"), load_file(folder / "back" / "model.safetensors")
    compared = 0
    for name, tensor in back.items():
        expected = there.get(name)
        if expected is None:
            expected = convert_moe_packed_tensors(there[f"{name}_blocks"], there[f"{name}_scales"])
            compared += 1
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected), name
    assert compared == 2 * 3
    assert "quantization_config" not in json.loads((folder / "back" / "config.json").read_text())
    content = Checkpoint.read(folder / "of there" / "model.ckpt").content
    assert {tensor.dtype for tensor in content["state_dict"].values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (1, "tensor model.layers.1.mlp.experts.down_proj_blocks has no model.layers.1.mlp.experts.down_proj_scales"),
        (
            2,
            "model.layers.1.mlp.experts.down_proj_blocks and model.layers.1.mlp.experts.down_proj_scales are not MXFP4",
        ),
        (3, "the weights are quantised; only weights of floating point are read, and gpt-oss's in mxfp4"),
    ],
)
def test_other_bytes_are_refused_in_one_line(call: int, line: str, said: Any) -> None:
    folder, answers = said
    assert answers[call]["status"] == 2, answers[call]
    assert line in answers[call]["errors"]
    assert len(list(folder.glob("of *"))) == 1
