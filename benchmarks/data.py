"""The cost of the data pipeline, as ratios over interleaved rounds in one process.

    python -m benchmarks.data            throughput vs. plain tiktoken; a training step vs. one fixed batch
    python -m benchmarks.data --memory   peak memory with a large synthetic corpus vs. a small one

Prints one line per figure; nothing passes or fails.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
import torch

from benchmarks.rounds import interleaved, ratio
from lightning_gpt.data.batches import TrainBatches
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.embedded import WikipediaSlice
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.split import Split
from lightning_gpt.data.stream import Stream
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.optim import adamw

ROUNDS = 7


def print_ratio(name: str, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Print the ratio of two costs over interleaved rounds: median, minimum and maximum."""
    costs = interleaved({"ours": ours, "theirs": theirs}, ROUNDS)
    found = ratio(costs["ours"], costs["theirs"])
    print(f"{name}: {found.median:.3f} ({ROUNDS} rounds: {found.least:.3f} to {found.most:.3f})")


def write_corpus(path: Path, megabytes: float) -> None:
    """Write a ``.jsonl`` file of about ``megabytes``, made of excerpts from the embedded Wikipedia articles."""
    articles = [document.text for document in WikipediaSlice().documents()]
    chance, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            text = chance.choice(articles)
            start = chance.randrange(max(1, len(text) - 4000))
            written += file.write(json.dumps({"text": f"{written} {text[start : start + 4000]}"}) + "\n")


def tokens_per_second(folder: Path) -> None:
    """Print the cost from text on disk to packed rows, relative to tiktoken alone on the same texts in memory.

    Both run on one thread and are measured in processor time: throughput per core, whatever else the machine does.
    """
    path = folder / "corpus.jsonl"
    write_corpus(path, 8)
    tokenizer = Tokenizer.gpt2()
    texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    encoding: tiktoken.Encoding = tokenizer.encoding
    tokens = sum(len(encoding.encode_to_numpy(text)) for text in texts)
    reader = Reader(Files(str(path)), Split(0.0, 0.0), "train", tokenizer)
    stream = Stream((reader,), (1.0,), block_size=256, shuffle_window=2048, seed=0)

    def bare() -> float:
        start = time.process_time()
        for text in texts:
            encoding.encode_to_numpy(text, disallowed_special=())
        return time.process_time() - start

    def packed() -> float:
        start, rows = time.process_time(), tokens // 257
        batches = iter(TrainBatches(stream, 8, 0, 1, None, 1))
        for _ in range(rows // 8):
            next(batches)
        return time.process_time() - start

    print_ratio("CPU time per token, text on disk to batches / plain tiktoken", packed, bare)


def step_with_loader() -> None:
    """Print the time of a quick-start training step with its loader, relative to the same step on a batch in memory."""
    data = TextData(tokenizer=4096, block_size=128, batch_size=8)
    data.setup("fit")
    model = GPT(GPTConfig(n_layer=4, n_head=4, dim=256, block_size=128, vocab_size=4096))
    optimizer = adamw(model)
    loader = iter(data.train_dataloader())
    fixed = next(loader)

    def step(batch: dict[str, torch.Tensor]) -> None:
        model.loss(batch["ids"], batch["targets"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def loaded() -> float:
        start = time.perf_counter()
        for _ in range(4):
            step(next(loader))
        return time.perf_counter() - start

    def in_memory() -> float:
        start = time.perf_counter()
        for _ in range(4):
            step(fixed)
        return time.perf_counter() - start

    print_ratio("training step with the loader / with one fixed batch", loaded, in_memory)


def memory(folder: Path, megabytes: tuple[float, float]) -> None:
    """Print the peak resident memory of a process that reads one pass of a small and of a large corpus."""
    peaks = []
    for size in megabytes:
        path = folder / f"{size:g}.jsonl"
        write_corpus(path, size)
        command = [sys.executable, "-m", "benchmarks.data", "--walk", str(path)]
        child = subprocess.run(command, capture_output=True, check=True)
        peaks.append(float(child.stdout))
        path.unlink()
        print(f"peak memory with {size:,.0f} MB of text: {peaks[-1]:,.0f} MB")
    print(f"additional memory for the larger corpus: {peaks[1] - peaks[0]:,.0f} MB")


def walk(path: Path) -> None:
    """Read one pass of rows from a file, then print the peak memory in MB."""
    reader = Reader(Files(str(path)), Split(0.0, 0.0), "train", Tokenizer.gpt2())
    source = Stream((reader,), (1.0,), block_size=256, shuffle_window=16384, seed=0)
    sequence = source.open()
    while sequence.sources[0].pass_number == 0:
        sequence.take(64)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Parse the flags and run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory with two corpus sizes")
    parser.add_argument("--megabytes", type=float, nargs=2, default=(20, 2000), help="the two corpus sizes in MB")
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.walk:
        walk(options.walk)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            memory(Path(folder), tuple(options.megabytes))
        else:
            torch.manual_seed(0)
            tokens_per_second(Path(folder))
            step_with_loader()


if __name__ == "__main__":
    main()
