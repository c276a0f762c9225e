"""A workload that takes milliseconds, and a stand-in for the clones of projects that are on no package index."""

from pathlib import Path

import pytest

from lightning_gpt.benchmark.bench import Bench
from lightning_gpt.benchmark.workload import Workload

# the interface of nanoGPT's model.py as bench uses it, over embedding and head alone
NANO_GPT = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        nn.init.normal_(self.embedding.weight, std=0.02)
        print("number of parameters: many")

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def forward(self, idx, targets=None):
        logits = self.embedding(idx) @ self.embedding.weight.T
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            idx = torch.cat([idx, self(idx)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
        return idx
"""


@pytest.fixture
def workload() -> Workload:
    return Workload(
        dim=16,
        n_head=2,
        time=32,
        batch=2,
        vocab_size=300,
        depths=[1, 2, 3],
        checkpoint_depth=3,
        generate_depth=1,
        prompt=3,
        new_tokens=4,
        generate_batch=2,
        attention_time=64,
        window=16,
    )


@pytest.fixture
def peer_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "peers"
    (folder / "nanoGPT").mkdir(parents=True)
    (folder / "nanoGPT/model.py").write_text(NANO_GPT)
    return folder


@pytest.fixture
def bench(workload: Workload, peer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two rounds of ours beside the stand-in, in one process, without the libraries that take seconds to import."""
    bench = Bench(workload, "cpu", 2, str(peer_dir), None)
    bench.__dict__["missing"] = dict.fromkeys(("minGPT", "Hugging Face", "litgpt"), "left out of tests")
    bench.__dict__["bf16_reason"] = None
    return bench
