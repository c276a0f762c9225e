"""Models in a GGUF file, the format of llama.cpp. Its quantised weights become fp32."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.data.published_tokenizer import CONFIG, MAIN, PublishedTokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.interop.settings import Settings
from lightning_gpt.options import shown

_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class _Kind:
    """How llama.cpp stores a family of models that are computed as Llama is.

    Args:
        inside: Its names of the tensors in a block, and the published ones.
        paired: Whether it rotates neighbours, so that the rows of each head are interleaved.
        width: The option with the width of a head; None if that follows from the other sizes.
    """

    inside: Mapping[str, str]
    paired: bool = False
    width: str | None = None


_KINDS = {
    "llama": _Kind(_INSIDE, paired=True, width="rope.dimension_count"),
    "qwen2": _Kind(_INSIDE),
    "qwen3": _Kind({**_INSIDE, **_NORMS}, width="attention.key_length"),
}
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    **{
        name: [
            {
                "type": "Split",
                "pattern": {"Regex": f"{_ENDINGS}|{_LETTERS}|{digits}|{_REST}"},
                "behavior": "Isolated",
                "invert": False,
            }
        ]
        for name, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
    },
}
"""The ways to cut a text in words that are read: what comes before the bytes."""
_NORMAL, _SPECIAL, _ADDED = 1, 3, 4  # types of a token


class GgufFile:
    """A published model in a GGUF file.

    Args:
        path: The file.

    Raises:
        CallError: The package ``gguf`` is not installed, the file is damaged, or the model is of another family.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise CallError("reading a GGUF file needs the package gguf: pip install -e '.[gguf]'") from None
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except OSError as error:
            raise CallError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise CallError(f"{path} is truncated, or not a GGUF file ({error})") from None
        self._fields = {name: field.contents for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.config = self._config()
        self.generation: dict[str, Any] = {}

    def _field(self, name: str, default: Any = None) -> Any:
        return self._fields[name]() if name in self._fields else default

    def _config(self) -> dict[str, Any]:
        """The same as a ``config.json``."""
        given = Settings({name: self._field(name) for name in self._fields if not name.startswith("tokenizer.")})
        family = given.values.get("general.architecture")
        if family not in _KINDS:
            raise CallError(
                f"{self.path} holds a model of the family {shown(family)}; from GGUF files, {', '.join(_KINDS)} "
                f"are read"
            )
        self._kind = _KINDS[family]
        given.require(f"{family}.rope.scaling.type", None, "none")
        given.require(f"{family}.expert_count", None, 0)

        def option(name: str, default: Any = None) -> Any:
            return given.values.get(f"{family}.{name}", default)

        dim, n_head = option("embedding_length"), option("attention.head_count")
        width = option(self._kind.width) if self._kind.width else None
        given.require(f"{family}.attention.key_length", None, width)
        return {
            "model_type": family,
            "hidden_size": dim,
            "num_hidden_layers": option("block_count"),
            "num_attention_heads": n_head,
            "num_key_value_heads": option("attention.head_count_kv", n_head),
            "head_dim": width,
            "intermediate_size": option("feed_forward_length"),
            "max_position_embeddings": option("context_length"),
            "vocab_size": len(self._field("tokenizer.ggml.tokens", ())) or option("vocab_size"),
            "rms_norm_eps": _shortest(option("attention.layer_norm_rms_epsilon", 1e-5)),
            "rope_theta": float(option("rope.freq_base", 10000.0)),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }

    def weights(self) -> Mapping[str, Tensor]:
        """All tensors by the names of the family, each computed when it is asked for."""
        return _Weights(self._tensors, self.config, self._kind)

    def tokenizer(self, vocab_size: int) -> PublishedTokenizer | None:
        """The tokenizer.

        Raises:
            CallError: It is of a kind that is not read.
        """
        kind, rule = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre")
        begins = self._field("tokenizer.ggml.add_bos_token") and rule != "llama-bpe"
        if kind != "gpt2" or rule not in _WORDS or begins:
            raise CallError(
                f"the tokenizer of {self.path} is {shown(kind)} with {shown(rule)}; from GGUF files, gpt2 with "
                f"{', '.join(_WORDS)} are read: leave it out with --tokenizer false"
            )
        tokens = self._field("tokenizer.ggml.tokens")
        end = int(self._field("tokenizer.ggml.eos_token_id"))
        others = (self._field(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom"))  # of a turn, of a message
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[end]}
        for ours, theirs in (("bos_token", "bos"), ("unk_token", "unknown"), ("pad_token", "padding")):
            number = self._field(f"tokenizer.ggml.{theirs}_token_id")
            if number is not None:
                config[ours] = tokens[int(number)]  # what chat templates name
        template = self._field("tokenizer.chat_template")
        files = {
            MAIN: json.dumps(self._described(tokens, rule), ensure_ascii=False),
            CONFIG: json.dumps({**config, **({"chat_template": template} if template else {})}, indent=2),
        }
        return PublishedTokenizer(
            self.path.stem, files, end, vocab_size, [int(other) for other in others if other is not None]
        )

    def _described(self, tokens: list[str], rule: str) -> dict[str, Any]:
        """The content of ``tokenizer.json``."""
        types = self._field("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [
            {"id": number, "content": tokens[number], **flags, "special": kind == _SPECIAL}
            for number, kind in enumerate(types)
            if kind in (_SPECIAL, _ADDED)
        ]
        by_gpt2 = rule in ("gpt-2", "smollm")
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": by_gpt2}
        return {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_WORDS[rule], level]},
            "post_processor": self._first(tokens),
            "decoder": level,
            "model": {
                "type": "BPE",
                "ignore_merges": rule == "llama-bpe",
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in self._field("tokenizer.ggml.merges")],
            },
        }

    def _first(self, tokens: list[str]) -> dict[str, Any] | None:
        """What puts the first token before a text; None if there is none."""
        if not self._field("tokenizer.ggml.add_bos_token"):
            return None
        number = int(self._field("tokenizer.ggml.bos_token_id"))
        first = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
        single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
        of_it = {tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": of_it}


class _Weights(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Any], config: Mapping[str, Any], kind: _Kind) -> None:
        self._of = {_published(name, kind.inside): tensor for name, tensor in tensors.items()}
        self._config, self._paired = config, kind.paired

    def __getitem__(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._of[name]
        try:
            weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        except NotImplementedError:
            raise CallError(f"tensor {name} is {tensor.tensor_type.name}; gguf cannot convert it") from None
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
        for part, count in heads.items():
            if part in name and self._paired:
                paired = weight.view(self._config[count], -1, 2, weight.shape[1])
                return paired.transpose(1, 2).flatten(0, 2).contiguous()
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def _published(name: str, names: Mapping[str, str]) -> str:
    inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if inside is not None and inside[2] in names:
        return f"model.layers.{inside[1]}.{names[inside[2]]}.{inside[3]}"
    stem, _, ending = name.rpartition(".")
    return f"{_OUTSIDE[stem]}.{ending}" if stem in _OUTSIDE else name


def _shortest(value: float) -> float:
    """The number of fewest digits that is this one in single precision, in which the file keeps it: 1e-05."""
    single = torch.tensor(value, dtype=torch.float32)
    return next((near for digits in range(1, 9) if torch.tensor(near := float(f"{value:.{digits}g}")) == single), value)
