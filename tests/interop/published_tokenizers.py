"""Tokenizers of each published kind, trained here, and texts made to break them."""

import json
import random
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Fast
from transformers import PreTrainedTokenizerFast

from lightning_gpt.data.sources.embedded import PythonReference

CORPUS = [document.text for document in islice(PythonReference().documents(), 30)]
LLAMA3 = "|".join(
    [
        *(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}"),
        *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    ]
)
CHARACTERS = "aAbz019 \t\n\r.,'-_<|>éßЖ中日한ไ\u0301\u200b\u200d🙂👩🏽\ud7ff\ue000\ufeff\U0010ffff\x00\x7f"


def texts() -> list[str]:
    """Words of the corpus, random characters, runs of one character, and special tokens in plain text."""
    rng = random.Random(0)
    made = [
        "",
        " ",
        "\n\n\n",
        "a" * 99,
        " " * 40 + "x",
        "don't DON'T we'LL",
        "1234567 12 1",
        "<|endoftext|>",
        "a<s>b</s>",
    ]
    made += ["".join(rng.choices(CHARACTERS, k=rng.randrange(1, 60))) for _ in range(300)]
    made += [text[at : at + 200] for text in CORPUS[:5] for at in rng.choices(range(max(1, len(text) - 200)), k=20)]
    return [text.encode("utf-8", "ignore").decode() for text in made]


FUZZ = texts()


def byte_level(kind: str) -> Fast:
    """A byte-level encoding in the manner of GPT-2, SmolLM2, Llama 3 or Qwen."""
    fast = Fast(models.BPE(ignore_merges=kind == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm2"))
    if kind == "smollm2":
        level = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    elif kind != "gpt2":
        level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), level])
    fast.pre_tokenizer, fast.decoder = level, decoders.ByteLevel()
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if kind == "smollm2" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    fast.train_from_iterator(CORPUS, trainer)
    if kind == "qwen":
        fast.normalizer = normalizers.NFC()
    if kind != "smollm2":
        fast.add_special_tokens(["<|endoftext|>", "<|begin_of_text|>"])
        fast.add_tokens([AddedToken("  x", normalized=False)])
    if kind == "llama3":
        begin = fast.token_to_id("<|begin_of_text|>")
        fast.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
        )
    return fast


def with_fallback(kind: str) -> Fast:
    """Characters for tokens and bytes for what is missing, in the manner of Llama 2 and Mistral, or of Gemma."""
    fast = Fast(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    decoded = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        fast.normalizer = normalizers.Replace(" ", "▁")
        fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        fast.decoder = decoders.Sequence(decoded)
    else:
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        fast.decoder = decoders.Sequence([*decoded, decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    fast.train_from_iterator((word for text in CORPUS for word in text.split()), trainer)
    described = json.loads(fast.to_str())
    for token in described["added_tokens"]:
        token["special"] = not token["content"].startswith("<0x")
    described["added_tokens"] = [token for token in described["added_tokens"] if token["special"]]
    fast = Fast.from_str(json.dumps(described))
    if kind == "gemma":
        fast.add_tokens([AddedToken("\n" * count, normalized=False) for count in (2, 3)])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def save(kind: str, folder: Path) -> Path:
    """Save a tokenizer of a kind as transformers does: gpt2, smollm2, llama3, qwen, fallback or gemma."""
    falls_back = kind in ("fallback", "gemma")
    fast = with_fallback(kind) if falls_back else byte_level(kind)
    end = "</s>" if falls_back else "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=end).save_pretrained(folder)
    return folder
