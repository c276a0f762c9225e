"""Models that no family expresses go out with code that imports nothing of ours, and run where this package is not."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_gpt.checkpoint import MODEL_KEY, Checkpoint
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.interop.own_code import CODE, OwnCode
from lightning_gpt.loading import load
from lightning_gpt.models import GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.norms import NoNorm, norms
from lightning_gpt.models.registry import plain
from tests.models.helpers import random_ids, randomise
from tests.models.variants import NGPT, SIZES, build
from tests.processes import environment, run_forked

MODELS: dict[str, dict[str, Any]] = {
    "local": {"attention": {"kind": "window", "window": 5}, "ffn": "relu2", "qk_norm": "rms", "position": "rotary"},
    "experts": {
        "ffn": {"kind": "moe", "n_expert": 4, "expert": "swiglu", "n_shared": 1, "balance": "bias"},
        "position": "alibi",
        "residual": "deepnorm",
        "attention": ["differential", {"kind": "strided", "stride": 4}],
    },
}
"""Those that go through the command and transformers, with a single head, too."""
ALONE: list[dict[str, Any]] = [
    {},
    {"attention": ["delta_net", {"kind": "sink_window", "window": 5, "rotary_base": 50.0}], "position": "sinusoidal"},
    {"attention": {"kind": "latent", "kv_rank": 6}, "position": {"kind": "yarn", "factor": 4.0, "original": 8}},
    {"attention": ["value_residual", "shaped"], "residual": "embedding_skip", "norm": "scale", "position": "t5"},
    {"attention": ["linear", {"kind": "full", "softcap": 2.0}], "logit_softcap": 3.0, "embedding_scale": 2.0},
    {
        "residual": "multiplied",
        "logit_divisor": 4.0,
        "ffn": {
            "kind": "moe",
            "n_expert": 4,
            "normed_gates": False,
            "gate_factor": 2.0,
            "n_shared": 1,
            "shared_gate": True,
        },
    },
    {"token_routing": {"kind": "mixture_of_depths", "every": 1, "capacity": 0.5}},
    {"convolution": "canon", "attention": ["gated", "full"], "ffn": "swiglu"},
    NGPT,
    {"layer_drop": {"kind": "constant", "rate": 0.2}, "norm": "rms_plus_one", "residual": "sandwich"},
    {"residual": {"kind": "hyper_connections", "n_stream": 2}},
    {"residual": {"kind": "constrained_hyper_connections", "n_stream": 2}},
    {"residual": "attention_residuals"},
    {"ffn": ["none", "geglu"], "residual": {"kind": "parallel", "n_norm": 2}, "embedding_norm": "layer"},
]
IDS = random_ids(17, 2, 12)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder, calls = tmp_path_factory.mktemp("own"), {}
    single = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=24, vocab_size=17)))
    models = {"single": single, **{name: build(changes).float() for name, changes in MODELS.items()}}
    for name, model in models.items():
        state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
        content = {MODEL_KEY: model.describe(), "state_dict": state, "global_step": 7}
        write_checkpoint(content, folder / f"{name}.ckpt")
        source = ["--source", f"{name}.ckpt", "--output"]
        calls |= {
            f"{name} out": [*source, f"out/{name}", "--custom_code", "true", "--shard_size", "5KB"],
            f"{name} without the flag": [*source, f"not/{name}"],
            f"{name} back": ["--source", f"out/{name}", "--output", f"back/{name}", "--compare", "false"],
        }
    calls |= {
        "code is run": ["--source", "out/local", "--output", "again", "--custom_code", "true"],
        "code is not run": ["--source", "out/local", "--output", "not/run"],
        "as a family": ["--source", "local.ckpt", "--output", "not/f", "--custom_code", "true", "--family", "llama"],
    }
    (folder / "calls.json").write_text(json.dumps([["convert", *call] for call in calls.values()]))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder, env={"HF_MODULES_CACHE": str(folder / "modules")})
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(calls, json.loads(done.stdout), strict=True))


NAMES = ["single", *MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_code_if_it_may_and_compares_what_it_computes(name: str, converted: Any) -> None:
    folder, said = converted
    assert said[f"{name} out"]["status"] == 0, said[f"{name} out"]["errors"]
    assert "a model with code of its own (LightningGPTForCausalLM)" in said[f"{name} out"]["out"]
    assert "100.0% of first choices agree" in said[f"{name} out"]["out"]
    refused = said[f"{name} without the flag"]
    assert refused["status"] == 2
    assert re.search(r"no (known )?family .*; --custom_code true writes modelling code of its own", refused["errors"])
    assert "whose code is in this folder" in (folder / "out" / name / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_changes_no_bit_and_no_option(name: str, converted: Any) -> None:
    folder, said = converted
    assert said[f"{name} back"]["status"] == 0, said[f"{name} back"]["errors"]
    was, now = (Checkpoint.read(path) for path in (folder / f"{name}.ckpt", folder / "back" / name / "model.ckpt"))
    assert was.config() == now.config()
    assert was.content["state_dict"].keys() == now.content["state_dict"].keys()
    assert all(torch.equal(now.content["state_dict"][key], value) for key, value in was.content["state_dict"].items())


def test_code_in_a_folder_is_run_only_if_that_is_allowed(converted: Any) -> None:
    _, said = converted
    assert said["code is run"]["status"] == 0, said["code is run"]["errors"]
    assert "100.0% of first choices agree" in said["code is run"]["out"]
    assert said["code is not run"]["status"] == 2
    assert "out/local has modelling code of its own, which the comparison" in said["code is not run"]["errors"]
    assert said["as a family"]["status"] == 2
    assert "LlamaForCausalLM has no" in said["as a family"]["errors"]


ELSEWHERE = """
import json, sys
import torch

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning_gpt", "lightning"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
from transformers import AutoModelForCausalLM

for name in sys.argv[1:]:
    ids = torch.load("ids.pt")
    options = {"trust_remote_code": True, "dtype": torch.float64}
    model = AutoModelForCausalLM.from_pretrained(f"out/{name}", **options).eval()
    made = {"logits": model(ids).logits.detach()}
    made["text"] = model.generate(ids[:1, :5], max_new_tokens=12, do_sample=False, pad_token_id=0)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made["padded"] = model(ids, attention_mask=mask).logits[0, 4:].detach()
    loss = model(ids, labels=ids).loss
    loss.backward()
    made["loss"] = loss.detach()
    made["trained"] = all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.save(made, f"{name}.pt")
assert not any(name.partition(".")[0] == "lightning_gpt" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def elsewhere(converted: Any) -> Path:
    """The same models in a process that cannot import this package."""
    folder, _ = converted
    torch.save(IDS, folder / "ids.pt")
    variables = environment({"HF_MODULES_CACHE": str(folder / "modules elsewhere"), "PYTHONPATH": None})
    command = [sys.executable, "-c", ELSEWHERE, *NAMES]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Path(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_runs_where_this_package_cannot_be_imported(name: str, elsewhere: Path) -> None:
    made, ours = torch.load(elsewhere / f"{name}.pt"), load(elsewhere / f"{name}.ckpt").double()
    with torch.no_grad():
        torch.testing.assert_close(made["logits"], ours(IDS), rtol=0, atol=1e-10)
        torch.testing.assert_close(made["padded"], ours(IDS[:1, 4:])[0], rtol=0, atol=1e-10)
        loss = ours.loss(IDS[:, :-1], IDS[:, 1:])
    torch.testing.assert_close(made["loss"].double(), loss, rtol=1e-6, atol=1e-6)  # theirs is of fp32 logits
    assert torch.equal(made["text"], ours.generate(IDS[:1, :5], 12, temperature=0))
    assert made["trained"]


def test_the_weights_are_in_shards_here_too(converted: Any) -> None:
    files = sorted((converted[0] / "out" / "local").glob("*.safetensors"))
    assert len(files) > 1
    assert all(name.startswith("model.") for file in files for name in load_file(file))


@pytest.mark.parametrize("changes", ALONE, ids=lambda changes: ",".join(changes) or "default")
def test_the_code_of_a_variant_is_the_same_function_and_one_file(changes: dict[str, Any], tmp_path: Path) -> None:
    """Without transformers; the code of each of these parts is then known to be whole."""
    model = build(changes)
    text = OwnCode().code(model.config)[f"{CODE}.py"]
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not any("lightning_gpt." in str(name) for name in imported)
    body = text[text.index("LightningGPTConfig\n") + len("LightningGPTConfig\n") : text.index("class LightningGPTFor")]
    name = f"one_file_{abs(hash(str(changes)))}"
    (tmp_path / f"{name}.py").write_text(body)
    spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        same = module.GPT(module.GPTConfig(**plain(vars(model.config)))).double().eval()
    finally:
        del sys.modules[name]
    assert type(same) is not type(model)
    same.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(same.head(same.hidden(IDS)), model(IDS), rtol=0, atol=1e-12)


def test_what_does_not_go_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CallError, match=r"n_unique is 1; a model whose layers share weights cannot be exported with its code"
    ):
        OwnCode().published(GPTConfig(**{**SIZES, "n_unique": 1}))

    class Mine(NoNorm):
        """A variant of a module of the user."""

    monkeypatch.setattr(norms, "_classes", dict(norms._classes))
    norms.register("mine")(Mine)
    with pytest.raises(
        CallError, match=r"the code of .*Mine is in tests.interop.test_own_code, outside lightning_gpt, and cannot be"
    ):
        OwnCode().code(GPTConfig(**{**SIZES, "norm": "mine"}))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lightning_gpt_model": "other", "model": {}}, r"does not describe a model of this version \(gpt, single"),
        ({"lightning_gpt_model": "gpt", "model": []}, r"does not describe a model of this version"),
        ({"lightning_gpt_model": "gpt", "model": {"depth": 3}}, r"has different options from a model of this version"),
        ({"lightning_gpt_model": "gpt", "model": {"norm": "peak"}}, r"norm is 'peak'; it must be one of"),
    ],
)
def test_a_config_that_is_no_model_of_ours_is_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(CallError, match=line):
        OwnCode().config(given)
