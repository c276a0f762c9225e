"""Our tokenizers as files that ``AutoTokenizer`` reads."""

import json
from collections.abc import Mapping
from typing import Any

from lightning_gpt.data.published_tokenizer import CONFIG, MAIN, PublishedTokenizer
from lightning_gpt.data.tokenizer import END_OF_TEXT, Tokenizer, byte_of


def published_files(tokenizer: Tokenizer) -> Mapping[str, str]:
    """The content of each file of a tokenizer by its name; a published one's are given back as they were."""
    if isinstance(tokenizer, PublishedTokenizer):
        return tokenizer.files
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return {MAIN: json.dumps(_described(tokenizer), ensure_ascii=False), CONFIG: json.dumps(config, indent=2)}


def _described(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of ``tokenizer.json``.

    tiktoken joins the pair whose token has the lowest rank, whatever its two halves, so every division of a token into
    two tokens is a merge here. It takes a word that is a token at once, as ``ignore_merges`` does.
    """
    characters = {byte: character for character, byte in byte_of.items()}

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    ranks = tokenizer.ranks
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in halves if all(half in ranks for half in pair)]
        merges += [[text(first), text(second)] for first, second in sorted(known, key=lambda p: ranks[p[0]])]
    end = {
        "id": tokenizer.end_of_text,
        "content": END_OF_TEXT,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
    }
    pattern = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            # with the special token, which otherwise would get the next number
            "vocab": {text(token): rank for token, rank in ranks.items()} | {END_OF_TEXT: tokenizer.end_of_text},
            "merges": merges,
        },
    }
