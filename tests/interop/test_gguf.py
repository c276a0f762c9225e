"""GGUF files of llama.cpp; skipped where the package that reads them is not installed (extra ``gguf``)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_gpt.checkpoint import Checkpoint
from tests.interop.published import GROUPED, MODELS, make
from tests.interop.published_tokenizers import FUZZ, save
from tests.processes import run_forked

gguf = pytest.importorskip("gguf")

NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(folder: Path, tokenizer: Path, path: Path, architecture: str = "llama", rule: str = "smollm") -> None:
    """The model in a folder as llama.cpp stores it: Llama's heads interleaved, since it rotates neighbours."""
    config, described = (json.loads((place).read_text()) for place in (folder / "config.json", tokenizer))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if architecture == "qwen3":
        writer.add_key_length(config["head_dim"])
    if architecture == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    vocab = vocabulary(described)
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = {token["content"]: 3 if token["special"] else 4 for token in described["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, 1) for token in tokens])
    if rule == "llama-bpe":
        writer.add_add_bos_token(True)
        writer.add_bos_token_id(vocab["<|begin_of_text|>"])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_eos_token_id(vocab["<|endoftext|>"])
    writer.add_eot_token_id(5)
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = re.search(r"layers\.(\d+)\.", name)
        short = next(short for long, short in NAMES.items() if long in name)
        prefix = "" if layer is None else f"blk.{layer[1]}."
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(short)
        if heads is not None and architecture == "llama":
            tensor = tensor.view(config[heads], 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{prefix}{short}.{name.rpartition('.')[2]}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary(described: dict[str, Any]) -> dict[str, int]:
    """The ids of all tokens of a ``tokenizer.json``."""
    return {**described["model"]["vocab"], **{token["content"]: token["id"] for token in described["added_tokens"]}}


def tokens(kind: str, folder: Path) -> Path:
    """A tokenizer of a kind; Qwen's has single digits, which the one for other tests has not."""
    path = save(kind, folder) / "tokenizer.json"
    if kind == "qwen":
        path.write_text(path.read_text().replace(r"\\p{N}{1,3}", r"\\p{N}"))
    return path


READ = {"llama": ("smollm2", "smollm"), "qwen2": ("qwen", "qwen2"), "qwen3": ("llama3", "llama-bpe")}
"""By family: the kind of tokenizer that it has here, and what a file calls its rule."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder, calls = tmp_path_factory.mktemp("gguf"), {}
    for family, (kind, rule) in READ.items():
        tokenizer = tokens(kind, folder / kind)
        size = len(vocabulary(json.loads(tokenizer.read_text())))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "qwen3", ("qwen3", {**GROUPED, "head_dim": 8}))  # with positions as they are
            make(family, folder / f"there {family}", vocab_size=size)
        write(folder / f"there {family}", tokenizer, folder / f"{family}.gguf", family, rule)
        calls |= {family: f"{family}.gguf", f"there {family}": f"there {family}"}
    tokenizer = folder / "smollm2" / "tokenizer.json"
    write(folder / "there llama", tokenizer, folder / "other.gguf", architecture="mamba")
    write(folder / "there llama", tokenizer, folder / "words.gguf", rule="deepseek-coder")
    (folder / "cut.gguf").write_bytes((folder / "llama.gguf").read_bytes()[:5000])
    (folder / "empty.gguf").write_bytes(b"")
    calls |= {name: f"{name}.gguf" for name in ("other", "words", "cut", "empty")}
    given = [
        ["--source", source, "--output", f"of {name}", "--compare", str(name == "llama").lower()]
        for name, source in calls.items()
    ]
    calls["pickled"] = "llama.gguf"
    given.append(["--source", "llama.gguf", "--output", "of pickled", "--pickled", "true"])
    (folder / "calls.json").write_text(json.dumps([["convert", *call] for call in given]))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(calls, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("family", READ)
def test_the_model_and_the_tokenizer_are_those_of_the_published_folder(family: str, converted: Any) -> None:
    folder, said = converted
    assert said[family]["status"] == 0, said[family]["errors"]
    ours, theirs = (Checkpoint.read(folder / f"of {name}" / "model.ckpt") for name in (family, f"there {family}"))
    assert ours.config() == theirs.config()
    weights = theirs.content["state_dict"]
    assert ours.content["state_dict"].keys() == weights.keys()
    assert all(torch.equal(ours.content["state_dict"][name], weights[name]) for name in weights)
    from tokenizers import Tokenizer as Fast

    published = Fast.from_file(str(folder / READ[family][0] / "tokenizer.json"))
    published.encode_special_tokens = True
    tokenizer = ours.tokenizer()
    assert tokenizer.end_of_text == published.token_to_id("<|endoftext|>")
    assert tokenizer.ends == (tokenizer.end_of_text, 5)
    assert list(tokenizer.start) == published.encode("", add_special_tokens=True).ids
    first = {"bos_token": "<|begin_of_text|>"} if family == "qwen3" else {}
    assert tokenizer.special_tokens == {"eos_token": "<|endoftext|>", **first}
    for text in FUZZ:
        assert tokenizer.encode(text).tolist() == published.encode(text, add_special_tokens=False).ids, repr(text)


def test_the_logits_are_compared_and_no_progress_bar_is_left_on_the_screen(converted: Any) -> None:
    _, said = converted
    assert "100.0% of first choices agree" in said["llama"]["out"]
    assert said["llama"]["errors"] == ""


LINES = {
    "other": r"other.gguf holds a model of the family 'mamba'; from GGUF files, llama, qwen2, qwen3 are read",
    "words": r"the tokenizer of words.gguf is 'gpt2' with 'deepseek-coder'; .* leave it out with --tokenizer false",
    "pickled": r"pickled True changes nothing with a .gguf file: leave pickled out",
    "cut": r"cut.gguf is truncated, or not a GGUF file",
    "empty": r"empty.gguf is truncated, or not a GGUF file",
}


@pytest.mark.parametrize("call", LINES)
def test_what_is_no_such_file_is_refused_in_one_line(call: str, converted: Any) -> None:
    folder, said = converted
    assert said[call]["status"] == 2, said[call]
    assert re.search(LINES[call], said[call]["errors"]), said[call]
    assert not (folder / f"of {call}").exists()
