"""GGUF files of llama.cpp; skipped where the package that reads them is not installed (extra ``gguf``)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_gpt.checkpoint import Checkpoint
from tests.interop.published import make
from tests.interop.published_tokenizers import FUZZ, save
from tests.processes import run_forked

gguf = pytest.importorskip("gguf")

NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
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
    """The Llama model in a folder as llama.cpp stores it: heads' rows interleaved, since it rotates neighbours."""
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
    writer.add_rope_dimension_count(config["head_dim"])
    vocab = described["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"] for token in described["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_eos_token_id(0)
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = re.search(r"layers\.(\d+)\.", name)
        short = next(short for long, short in NAMES.items() if long in name)
        prefix = "" if layer is None else f"blk.{layer[1]}."
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(short)
        if heads is not None:
            tensor = tensor.view(config[heads], 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{prefix}{short}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = save("smollm2", folder / "tokenizer") / "tokenizer.json"
    size = len(json.loads(tokenizer.read_text())["model"]["vocab"])
    make("llama", folder / "there", vocab_size=size)
    write(folder / "there", tokenizer, folder / "model.gguf")
    write(folder / "there", tokenizer, folder / "other.gguf", architecture="mamba")
    write(folder / "there", tokenizer, folder / "words.gguf", rule="deepseek-coder")
    (folder / "cut.gguf").write_bytes((folder / "model.gguf").read_bytes()[:5000])
    (folder / "empty.gguf").write_bytes(b"")
    names = ["model", "other", "words", "cut", "empty"]
    calls = [["convert", "--source", f"{name}.gguf", "--output", f"of {name}", "--compare", "false"] for name in names]
    calls.append(["convert", "--source", "there", "--output", "of there", "--compare", "false"])
    (folder / "calls.json").write_text(json.dumps(calls))
    done = run_forked("tests.many_calls", "calls.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_model_and_the_tokenizer_are_those_of_the_published_folder(converted: Any) -> None:
    folder, (said, *_) = converted
    assert said["status"] == 0, said["errors"]
    ours, theirs = (Checkpoint.read(folder / f"of {name}" / "model.ckpt") for name in ("model", "there"))
    assert ours.config() == theirs.config()
    weights = theirs.content["state_dict"]
    assert ours.content["state_dict"].keys() == weights.keys()
    assert all(torch.equal(ours.content["state_dict"][name], weights[name]) for name in weights)
    from tokenizers import Tokenizer as Fast

    published = Fast.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    published.encode_special_tokens = True
    tokenizer = ours.tokenizer()
    assert tokenizer.end_of_text == 0
    for text in FUZZ:
        assert tokenizer.encode(text).tolist() == published.encode(text, add_special_tokens=False).ids, repr(text)


LINES = {
    1: r"other.gguf holds a model of the family 'mamba'; only llama is read from GGUF files",
    2: r"the tokenizer of words.gguf is 'gpt2' with 'deepseek-coder'; .* leave it out with --tokenizer false",
    3: r"cut.gguf is truncated, or not a GGUF file",
    4: r"empty.gguf is truncated, or not a GGUF file",
}


@pytest.mark.parametrize("call", LINES)
def test_what_is_no_such_file_is_refused_in_one_line(call: int, converted: Any) -> None:
    folder, said = converted
    assert said[call]["status"] == 2, said[call]
    assert re.search(LINES[call], said[call]["errors"]), said[call]
    assert sorted(path.name for path in folder.glob("of *")) == ["of model", "of there"]
