"""What early exit saves in generation time, and what it costs in loss.

    python -m benchmarks.early_exit runs/quickstart/version_0/checkpoints/last.ckpt

Reads held-out rows of the embedded corpus token by token through a cache, as generation does, first with all layers
and then with each threshold, on one thread. Prints one line per threshold: layers per token, time per token relative to
all layers (median, minimum and maximum over the rows), and the loss on the next tokens. Nothing passes or fails.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.rounds import ratio
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.loading import load
from lightning_gpt.models import GPT
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.head import IGNORED

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def read(model: GPT | EarlyExit, row: Tensor, prompt: int) -> tuple[float, float]:
    """Seconds per token and mean loss in nats on ``row`` ``(time,)`` after its first ``prompt`` tokens."""
    cache = model.new_cache(len(row))
    logits = [model.next_logits(row[None, :prompt], cache=cache)]
    start = time.perf_counter()
    logits += [model.next_logits(row[None, place : place + 1], cache=cache) for place in range(prompt, len(row) - 1)]
    seconds = (time.perf_counter() - start) / (len(row) - 1 - prompt)
    return seconds, nn.functional.cross_entropy(torch.cat(logits), row[prompt:]).item()


def main() -> None:
    """Parse the flags, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--tokenizer", type=int, default=4096, help="vocabulary size of the checkpoint's tokenizer")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=16, help="number of tokens read at once at the start of a row")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = load(asked.checkpoint).eval()
    assert isinstance(model, GPT)
    data = TextData(tokenizer=asked.tokenizer, block_size=model.config.block_size)
    data.setup("validate")
    targets = data.evaluation("val").all_targets
    rows = targets[targets != IGNORED][: asked.rows * data.block_size].view(asked.rows, -1)
    read(model, rows[0], asked.prompt)
    exits = [EarlyExit(model, threshold) for threshold in THRESHOLDS]
    readers: list[GPT | EarlyExit] = [model, *exits]
    readings = [[read(reader, row, asked.prompt) for reader in readers] for row in rows]
    (whole, loss), *found = [tuple(zip(*of_reader, strict=True)) for of_reader in zip(*readings, strict=True)]
    print(f"all {model.config.n_layer} layers: loss {statistics.mean(loss):.3f} nats")
    for leaving, (seconds, loss) in zip(exits, found, strict=True):
        time_ratio = ratio(seconds, whole)
        print(
            f"confidence {leaving.confidence}: {leaving.layers_per_token:.2f} layers per token, time "
            f"{time_ratio.median:.2f} x ({time_ratio.least:.2f} to {time_ratio.most:.2f}), "
            f"loss {statistics.mean(loss):.3f} nats"
        )


if __name__ == "__main__":
    main()
