"""Published models of every family through the real command, in and out, beside transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig

import lightning_gpt.interop.convert  # noqa: F401  (imported to register the families)
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.interop.family import families
from lightning_gpt.loading import load
from lightning_gpt.models.registry import at_layer
from tests.interop.published import MODELS, in_double, make
from tests.processes import run_forked

STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "in bf16": ("llama", {"dtype": torch.bfloat16}),
    "in fp16": ("gpt_neox", {"dtype": torch.float16}),
    "in float64": ("gpt2", {"dtype": torch.float64}),
    "in shards": ("qwen3", {"max_shard_size": "20KB"}),
}
"""Other ways to store a model."""
EVERY = [*MODELS, *STORED]
# transformers has √(2/π) to eight digits in BLOOM's GELU
FLOOR = {"bloom": 1e-8, "bloom with six heads": 1e-8}


def family(name: str) -> str:
    return MODELS[STORED[name][0] if name in STORED else name][0]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with ``published/NAME``, ``ours/NAME`` and ``back/NAME``, and what the commands said."""
    folder, calls = tmp_path_factory.mktemp("models"), []
    for name in EVERY:
        source, options = STORED.get(name, (name, {}))
        make(source, folder / "published" / name, **options)
        calls += [
            ["convert", "--source", f"published/{name}", "--output", f"ours/{name}"],
            ["convert", "--source", f"ours/{name}/model.ckpt", "--output", f"back/{name}", "--family", family(name)],
        ]
    (folder / "calls.json").write_text(json.dumps(calls))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    said = iter(json.loads(done.stdout))
    return folder, {name: {"in": next(said), "out": next(said)} for name in EVERY}


def test_there_is_a_model_of_every_family() -> None:
    assert {kind for kind, _ in MODELS.values()} == set(families.names)


@pytest.mark.parametrize("name", EVERY)
def test_the_command_compares_logits_in_both_directions(name: str, converted: Any) -> None:
    for said in converted[1][name].values():
        assert said["status"] == 0, said["errors"]
        assert "100.0% of first choices agree" in said["out"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_in_float64(name: str, converted: Any) -> None:
    folder, _ = converted
    ids = torch.randint(59, (2, 50), generator=torch.Generator().manual_seed(1))
    with in_double(folder / "published" / name) as model:
        theirs = model(ids).logits
    with torch.no_grad():
        ours = load(folder / "ours" / name / "model.ckpt").double()(ids)
    assert theirs.dtype == torch.float64
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOOR.get(name, 1e-10))


@pytest.mark.parametrize("name", EVERY)
def test_the_way_back_changes_no_bit_and_no_option(name: str, converted: Any) -> None:
    folder, _ = converted
    there, back = folder / "published" / name, folder / "back" / name
    was = {key: tensor for file in there.glob("*.safetensors") for key, tensor in load_file(file).items()}
    now = load_file(back / "model.safetensors")
    assert was.keys() == now.keys()
    for key, tensor in was.items():
        assert now[key].dtype == tensor.dtype
        assert torch.equal(now[key], tensor), key
    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in (there, back)]
    ids = torch.randint(59, (2, 50))
    with torch.no_grad():
        first, second = (model(ids).logits for model in models)
    assert torch.equal(first, second)
    assert type(models[0]) is type(models[1])


@pytest.mark.parametrize("name", MODELS)
def test_the_config_is_read_back_as_it_was(name: str, converted: Any) -> None:
    folder, _ = converted
    was, now = (AutoConfig.from_pretrained(folder / place / name).to_dict() for place in ("published", "back"))
    free = {"_name_or_path", "transformers_version", "initializer_range", "use_cache", "n_inner", "max_window_layers"}
    free |= {"router_aux_loss_coef"}  # of training, and ours to choose
    free |= {"sliding_window_pattern", "_sliding_window_pattern"}  # layer_types says it
    for key, value in was.items():
        if key == "rope_parameters":  # theirs leaves defaults out
            assert {**now[key], **value} == now[key]
        elif key == "head_dim" and value is None:
            assert now[key] == 24 // was["num_attention_heads"]
        elif key == "intermediate_size" and was.get("mlp_only_layers") == []:  # it is of no layer
            assert was["model_type"] in ("qwen2_moe", "qwen3_moe")
        elif key not in free and not (key == "sliding_window" and was.get("use_sliding_window") is False):
            assert now[key] == value, key


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_transformers(name: str, converted: Any) -> None:
    folder, _ = converted
    ids = torch.randint(59, (1, 9), generator=torch.Generator().manual_seed(2))
    model = AutoModelForCausalLM.from_pretrained(folder / "published" / name, dtype=torch.float32).eval()
    theirs = model.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = load(folder / "ours" / name / "model.ckpt").generate(ids, 30, temperature=0)
    assert torch.equal(ours, theirs)


def test_windows_of_qwen2_moe_are_those_of_a_config_that_does_not_list_them(converted: Any) -> None:
    folder, _ = converted
    for name, found in (("qwen2_moe with windows and a dense layer", [5, None, None]), ("qwen2_moe", [None] * 3)):
        given = json.loads((folder / "published" / name / "config.json").read_text())
        listed, read = given.pop("layer_types"), families.make("qwen2_moe").config(given)
        assert [kind == "sliding_attention" for kind in listed] == [window is not None for window in found]
        assert [at_layer(read.attention, layer).get("window") for layer in range(3)] == found


def test_a_config_of_mistral_that_does_not_say_has_the_window_that_transformers_gives_it(converted: Any) -> None:
    folder, _ = converted
    given = json.loads((folder / "published" / "mistral without window" / "config.json").read_text())
    assert given.pop("sliding_window") is None
    assert (
        families.make("mistral").config(given).attention[0].options["window"] == MistralConfig().sliding_window == 4096
    )


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_a_family_whose_config_has_no_window_unless_it_says_so_is_read_without_one(name: str, converted: Any) -> None:
    folder, _ = converted
    given = json.loads((folder / "published" / name / "config.json").read_text())
    given.pop("sliding_window")
    assert AutoConfig.for_model(name).sliding_window is None
    assert [choice.kind for choice in families.make(name).config(given).attention] == ["grouped"]


@pytest.mark.parametrize("name", ["qwen2", "qwen2_moe", "qwen3", "qwen3_moe"])
def test_windows_that_are_allowed_and_null_are_none(name: str, converted: Any) -> None:
    folder, _ = converted
    given = json.loads((folder / "published" / name / "config.json").read_text())
    changes = {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
    for window, found in ((None, set()), (5, {5})):
        read = families.make(name).config({**given, **changes, "sliding_window": window})
        windows = {at_layer(read.attention, layer).get("window") for layer in range(3)}
        assert windows - {None} == found
    del given["sliding_window"]
    read = families.make(name).config({**given, **changes})
    assert 4096 in {at_layer(read.attention, layer).get("window") for layer in range(3)}


def test_a_config_of_phi_that_names_no_sizes_is_the_one_that_transformers_makes_of_it() -> None:
    read, theirs = families.make("phi").config({}), AutoConfig.for_model("phi")
    assert (read.dim, read.n_head, read.n_layer) == (
        theirs.hidden_size,
        theirs.num_attention_heads,
        theirs.num_hidden_layers,
    )


def test_weights_stay_in_the_precision_in_which_they_were_published(converted: Any) -> None:
    folder, _ = converted
    for name, dtype in (("in bf16", torch.bfloat16), ("in fp16", torch.float16), ("in float64", torch.float64)):
        content = Checkpoint.read(folder / "ours" / name / "model.ckpt").content
        assert {tensor.dtype for tensor in content["state_dict"].values()} == {dtype}


def test_a_model_goes_out_as_the_first_family_that_expresses_it(converted: Any, tmp_path: Path) -> None:
    folder, _ = converted
    calls = []
    for name in ("olmo2", "bloom", "gpt2", "mixtral"):
        source = str(folder / "ours" / name / "model.ckpt")
        calls.append(["convert", "--source", source, "--output", name, "--compare", "false"])
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    said = json.loads(run_forked("tests.many_calls", "calls.json", cwd=tmp_path).stdout)
    for call, answer in zip(calls, said, strict=True):
        assert f"written as {call[4]}" in answer["out"], answer
