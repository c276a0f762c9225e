"""Every wrong model or call of ``convert`` ends with one line and status 2, and leaves nothing behind."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.models import GPT, GPTConfig
from tests.interop.published import make
from tests.processes import run_forked

LLAMA = {"norm": "rms", "bias": False, "tie_embeddings": False, "ffn": "swiglu"}
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 16, "block_size": 24, "vocab_size": 17}


def changed(folder: Path, **options: Any) -> None:
    """Change the published config; None leaves an option out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensored(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def wrong_tensors(tensors: dict[str, torch.Tensor]) -> None:
    for layer in (0, 1, 2):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
    tensors["model.extra.weight"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.zeros(5)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_code(folder: Path) -> None:
    torch.save({"a": Path("/tmp")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shards_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def tokenizer(folder: Path, kind: str = "BPE", last: int = 1, decoder: str = "ByteLevel") -> None:
    vocab: Any = {"a": 0, "b": last} if kind == "BPE" else [["a", 0.0], ["<unk>", -1.0]]
    model = {"type": kind, "vocab": vocab, **({"merges": []} if kind == "BPE" else {"unk_id": 1})}
    end = {"id": 0, "content": "a", **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    content = {"version": "1.0", "added_tokens": [{**end, "special": True}], "model": model}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({**content, "decoder": {"type": decoder, **level}}))
    changed(folder, eos_token_id=0)


def tied(folder: Path) -> None:
    changed(folder, tie_word_embeddings=True)


FOLDERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no config": ("llama", lambda f: (f / "config.json").unlink(), r"published/no config/config.json does not exist"),
    "config no JSON": ("llama", lambda f: (f / "config.json").write_text("{"), r"config.json is not valid JSON"),
    "config a list": ("llama", lambda f: (f / "config.json").write_text("[]"), r"config.json is not a JSON object"),
    "unknown family": (
        "llama",
        lambda f: changed(f, model_type="mamba"),
        r"model_type is 'mamba'; the known families are bloom, diffllama, gemma2, gemma3_text, gpt2, gpt_neox, gpt_oss",
    ),
    "no family": ("llama", lambda f: changed(f, model_type=None), r"model_type is None; the known families are"),
    "no width": ("llama", lambda f: changed(f, hidden_size=None), r"config.json has no hidden_size"),
    "wrong type": ("llama", lambda f: changed(f, hidden_size="24"), r"hidden_size is '24'; it must be a whole number"),
    "wrong heads": ("llama", lambda f: changed(f, num_key_value_heads=3), r"n_kv_head is 3; it must divide n_head"),
    "activation": (
        "llama",
        lambda f: changed(f, hidden_act="gelu"),
        r"hidden_act is 'gelu'; lightning_gpt computes only",
    ),
    "dynamic positions": (
        "llama",
        lambda f: changed(f, rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
        r"rope_type is 'dynamic'; lightning_gpt computes only default, linear, llama3, yarn",
    ),
    "part of each head": (
        "llama",
        lambda f: changed(f, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        r"partial_rotary_factor is 0.5; LlamaForCausalLM does not compute it: all of each head rotates \(allowed: 1",
    ),
    "part of each head, at the top": (
        "qwen2",
        lambda f: changed(f, partial_rotary_factor=0.25),
        r"partial_rotary_factor is 0.25; Qwen2ForCausalLM does not compute it",
    ),
    "scores by layer": (
        "gpt2",
        lambda f: changed(f, scale_attn_by_inverse_layer_idx=True),
        r"scale_attn_by_inverse_layer_idx is True; lightning_gpt computes only false",
    ),
    "layer types": (
        "qwen2 with windows",
        lambda f: changed(f, layer_types=["full_attention", "chunked_attention", "full_attention"]),
        r"layer_types of layer 1 is 'chunked_attention'; lightning_gpt computes only",
    ),
    "shared experts of another width": (
        "qwen2_moe",
        lambda f: changed(f, shared_expert_intermediate_size=20),
        r"shared_expert_intermediate_size is 20; lightning_gpt computes only multiples of "
        r"moe_intermediate_size, which is 12",
    ),
    "normed queries with biases": (
        "phi",
        lambda f: changed(f, qk_layernorm=True),
        r"qk_layernorm is True; lightning_gpt computes only false",
    ),
    "positions by length": (
        "phi3",
        lambda f: changed(f, rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        r"rope_type is 'longrope'; lightning_gpt computes only",
    ),
    "both directions": (
        "gemma2",
        lambda f: changed(f, use_bidirectional_attention=True),
        r"use_bidirectional_attention is True; lightning_gpt computes only none or false",
    ),
    "stretched windows": (
        "gemma3_text",
        lambda f: changed(f, rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
        r"rope_type is 'linear'; lightning_gpt computes only default",
    ),
    "other bounds": (
        "gpt_oss",
        lambda f: changed(f, swiglu_limit=5.0),
        r"swiglu_limit is 5.0; lightning_gpt computes only 7.0",
    ),
    "unpaired heads": (
        "diffllama",
        lambda f: changed(f, num_key_value_heads=1),
        r"num_key_value_heads is 1; differential attention takes heads in pairs, so it must be even",
    ),
    "generation config no JSON": (
        "llama",
        lambda f: (f / "generation_config.json").write_text("{"),
        r"generation_config.json is not valid JSON",
    ),
    "tensors": (
        "llama",
        lambda f: retensored(f, wrong_tensors),
        r"3 missing: model.layers.0–2.mlp.up_proj.weight; 1 unknown: model.extra.weight; "
        r"1 of the wrong shape: model.norm.weight \(5,\) instead of \(24,\)",
    ),
    "tied to another": (
        "llama",
        tied,
        r"tie_word_embeddings is true, but lm_head.weight and model.embed_tokens.weight",
    ),
    "mixed types": (
        "llama",
        lambda f: retensored(f, lambda t: t.update({k: v.half() for k, v in t.items() if "layers.1.self_attn.k" in k})),
        r"the tensors model.layers.1.self_attn.q_proj.weight, .* are one matrix here, and they are float16, float32",
    ),
    "cut": ("llama", cut, r"model.safetensors is truncated, or not a safetensors file"),
    "shard missing": ("llama", without_a_shard, r"model-00001-of-00001.safetensors does not exist"),
    "shard elsewhere": ("llama", shards_elsewhere, r"does not say which file of this folder holds each tensor"),
    "no weights": ("llama", lambda f: (f / "model.safetensors").unlink(), r"has neither model.safetensors nor pytorch"),
    "pickled": ("gpt2", pickled, r"weights in pytorch_model.bin alone, .* allow it with --pickled true"),
    "quantised": ("llama", lambda f: changed(f, quantization_config={"bits": 4}), r"the weights are quantised"),
    "eight bits": (
        "llama",
        lambda f: retensored(f, lambda t: t.update({"model.norm.weight": torch.ones(24).to(torch.float8_e4m3fn)})),
        r"tensor model.norm.weight is float8_e4m3fn; quantised weights are not read",
    ),
    "whole numbers": (
        "llama",
        lambda f: retensored(f, lambda t: t.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)})),
        r"tensor model.norm.weight is int8; quantised weights are not read",
    ),
    "tokenizer too large": (
        "llama",
        lambda f: tokenizer(f, last=59),
        r"ids up to 59, and the model's vocabulary has 59",
    ),
    "tokenizer of pieces": (
        "llama",
        lambda f: tokenizer(f, kind="Unigram", decoder="Metaspace"),
        r"holds a Unigram model with Metaspace; only byte-pair encodings are read",
    ),
    "tokenizer no JSON": ("llama", lambda f: (f / "tokenizer.json").write_text("?"), r"tokenizer.json is not valid"),
    "tokenizer empty": (
        "llama",
        lambda f: (f / "tokenizer.json").write_text("{}"),
        r"tokenizer.json is not a tokenizer",
    ),
}
"""By name: the model that is changed, how, and what the line says."""

MODELS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "latent": (
        {"attention": {"kind": "latent", "kv_rank": 4}},
        [],
        r"no known family expresses this model; the nearest is .*attention latent",
    ),
    "as llama": ({}, ["--family", "llama"], r"LlamaForCausalLM has no .*position learned"),
    "part of each head rotated": (
        {**LLAMA, "position": {"kind": "rotary", "share": 0.5}},
        ["--family", "llama", "--compare", "false"],
        r"LlamaForCausalLM has no .*position rotary \(share 0.5\)",
    ),
    "shared blocks": ({"n_unique": 1}, ["--family", "gpt2"], r"GPT2LMHeadModel has no n_unique 1"),
    "other residual": ({"residual": "sandwich"}, ["--family", "gpt2"], r"GPT2LMHeadModel has no residual sandwich"),
    "layers differ": (
        {"ffn": ["gelu", "relu"]},
        ["--family", "gpt2"],
        r"GPT2LMHeadModel has no ffn \[gelu, relu\]",
    ),
    "gemma's norms": (
        {"norm": "rms_plus_one", "residual": "sandwich", "bias": False, "position": "rotary", "ffn": "geglu"},
        ["--family", "gemma2"],
        r"Gemma2ForCausalLM has no .*embedding_scale 1.0",
    ),
    "gates as they are": (
        {
            "norm": "rms",
            "bias": False,
            "position": "rotary",
            "tie_embeddings": False,
            "ffn": {"kind": "moe", "expert": "swiglu", "normed_gates": False},
        },
        ["--family", "mixtral"],
        r"MixtralForCausalLM has no ffn moe \(expert swiglu, normed_gates False\)",
    ),
    "scaled gates": (
        {
            "norm": "rms",
            "bias": False,
            "position": "rotary",
            "tie_embeddings": False,
            "ffn": {"kind": "moe", "expert": "swiglu", "gate_factor": 2.5},
        },
        ["--family", "mixtral"],
        r"MixtralForCausalLM has no ffn moe \(expert swiglu, gate_factor 2.5\)",
    ),
    "size without bounds": (
        {},
        ["--shard_size", "1e400GB", "--compare", "false"],
        r"shard_size is '1e400GB'; it must be a size like 5GB, 500MB or 20KB",
    ),
    "tolerance of no comparison": (
        {},
        ["--compare", "false", "--tolerance", "5"],
        r"tolerance 5(\.0)? changes nothing with compare false: leave tolerance out",
    ),
    "unknown": ({}, ["--family", "lama"], r"family 'lama'|family is 'lama'; it must be one of bloom, diffllama"),
}
"""By name: our model, what is typed, and what the line says."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What the command said to each, all in one process."""
    folder, calls = tmp_path_factory.mktemp("refused"), {}
    for name, (model, change, _) in FOLDERS.items():
        change(make(model, folder / "published" / name))
        calls[name] = ["--source", f"published/{name}", "--output", f"made/{name}"]
    for name, (changes, typed, _) in MODELS.items():
        model = GPT(GPTConfig(**{**SIZES, **changes}))
        state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
        write_checkpoint({MODEL_KEY: model.describe(), "state_dict": state}, folder / f"{name}.ckpt")
        calls[name] = ["--source", f"{name}.ckpt", "--output", f"made/{name}", *typed]
    good = make("llama", folder / "published" / "good")
    with_code(make("gpt2", folder / "published" / "code"))
    source = ["--source", "published/good", "--output"]
    calls |= {
        "not the same": [*source, "made/not the same", "--tolerance", "1e-12"],
        "output exists": [*source, "published"],
        "tolerance of a folder": [*source, "made/tolerance of a folder", "--compare", "false", "--tolerance", "5"],
        "family of a folder": [*source, "made/family of a folder", "--family", "gpt2"],
        "code": ["--source", "published/code", "--output", "made/code", "--pickled", "true"],
        "no source": ["--source", "nothing", "--output", "made/no source"],
        "no model": ["--source", "published/good/model.safetensors", "--output", "made/no model"],
    }
    assert good.is_dir()
    pickled(make("gpt2", folder / "published" / "allowed"))
    calls["allowed"] = ["--source", "published/allowed", "--output", "made/allowed", "--pickled", "true"]
    (folder / "calls.json").write_text(json.dumps([["convert", *call] for call in calls.values()]))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(calls, json.loads(done.stdout), strict=True))


LINES = {
    **{name: line for name, (_, _, line) in FOLDERS.items()},
    **{name: line for name, (_, _, line) in MODELS.items()},
    "not the same": r"not the same model as in transformers: logits differ by at most .* \(allowed: 1e-12 of the l",
    "output exists": r"published exists; choose another output",
    "tolerance of a folder": r"tolerance 5(\.0)? changes nothing with compare false: leave tolerance out",
    "family of a folder": r"family 'gpt2' changes nothing with a published model: leave family out",
    "code": r"holds Python objects; only tensors, numbers and text are loaded",
    "no source": r"checkpoint 'nothing' does not exist",
    "no model": r"checkpoint 'published/good/model.safetensors' .* is not a checkpoint of PyTorch",
}


@pytest.mark.parametrize("name", LINES)
def test_it_is_refused_in_one_line_and_nothing_is_left(name: str, said: Any) -> None:
    folder, answers = said
    answer = answers[name]
    lines = [line for line in answer["errors"].splitlines() if line.startswith("error: ")]
    assert answer["status"] == 2, answer
    assert len(lines) == 1
    assert re.search(LINES[name], lines[0]), lines[0]
    assert not list((folder / "made").glob(f"{name}*"))


def test_pickled_weights_are_read_where_that_is_allowed(said: Any) -> None:
    folder, answers = said
    assert answers["allowed"]["status"] == 0, answers["allowed"]
    assert (folder / "made" / "allowed" / "model.ckpt").is_file()
