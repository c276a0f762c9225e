"""A tiny checkpoint, and the real command that serves it."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Fast

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.data.published_tokenizer import CONFIG, MAIN, PublishedTokenizer
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPTConfig, LanguageModel
from lightning_gpt.models.memory.gpt import gpt_with
from tests.fork_server import Fork
from tests.models.helpers import randomise
from tests.processes import COMMAND, environment, start_forked

LONGEST = 1024
END, BEGIN_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog; größer, 日本 and 🙂 too. "


def plain_tokenizer() -> Tokenizer:
    """A tokenizer of this package."""
    return Tokenizer.train([WORDS * 20], 320)


def chat_tokenizer() -> PublishedTokenizer:
    """A published tokenizer with a chat template."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator([WORDS * 20], trainer)
    fast.add_special_tokens([AddedToken(text, special=True) for text in (END, BEGIN_TURN, END_TURN)])
    files = {MAIN: fast.to_str(), CONFIG: json.dumps({"eos_token": END, "chat_template": TEMPLATE})}
    end = fast.token_to_id(END)
    return PublishedTokenizer("tiny", files, end, fast.get_vocab_size())


def tiny_model(vocab_size: int, seed: int = 0, memory: Any = "none", **changes: Any) -> LanguageModel:
    """A model with random weights, sure enough of its tokens that rounding changes none."""
    sizes = {"n_layer": 2, "n_head": 2, "dim": 32, "block_size": LONGEST, "position": "rotary"}
    model = gpt_with(memory, GPTConfig(**{**sizes, "vocab_size": vocab_size, **changes}))
    return randomise(model, seed=seed, std=0.25).eval()


def write_model(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> Path:
    """A checkpoint of the model with its tokenizer."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {MODEL_KEY: model.describe(), "state_dict": state, "TextData": {"tokenizer": tokenizer.state_dict()}}
    write_checkpoint(content, path)
    return path


class Served:
    """The command ``lightning-gpt serve``, running.

    Args:
        url: Where it answers.
        process: Its process.
        output: The file with what it says.
    """

    def __init__(self, url: str, process: Fork | subprocess.Popen[bytes], output: Path) -> None:
        self.url, self.process, self.output = url, process, output

    def health(self) -> dict[str, Any]:
        """What ``/health`` says."""
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=60).json()
        return found

    def until_idle(self, seconds: float = 60) -> dict[str, Any]:
        """What ``/health`` says once no text is running or waiting."""
        end = time.monotonic() + seconds
        while (health := self.health())["running"] or health["waiting"]:
            assert time.monotonic() < end, health
            time.sleep(0.02)
        return health

    def memory(self) -> int:
        """Memory of the process in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to stop; returns its exit status and what it has said."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        return status, self.output.read_text()


@contextmanager
def serving(checkpoint: Path, *options: str, fresh: bool = False) -> Iterator[Served]:
    """Serve a checkpoint on a free port while the context is open; ``fresh``: in an interpreter of its own."""
    output = checkpoint.with_name(f"{checkpoint.stem}-{time.monotonic_ns()}.txt")
    with output.open("wb") as file:
        command = [*COMMAND, "serve", "--checkpoint", str(checkpoint), "--port", "0", "--name", "tiny", *options]
        folder, env = checkpoint.parent, environment()
        process: Fork | subprocess.Popen[bytes] = (
            subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file)
            if fresh
            else start_forked(command, folder, env, file, file)
        )
        end = time.monotonic() + 120
        while "serving tiny at" not in (said := output.read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.02)
        url = said.partition("serving tiny at ")[2].partition("/v1")[0]
        try:
            yield Served(url, process, output)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def ids_of(text: str, tokenizer: Tokenizer) -> torch.Tensor:
    """The ids of a prompt."""
    return torch.tensor(tokenizer.encode(text).tolist())
