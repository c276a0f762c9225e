"""Saves a checkpoint again and again until it is killed: ``python -m tests.training.save_forever PATH``."""

import itertools
import sys
from pathlib import Path

import torch

from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.whole_file import keep_previous

MEGABYTES = 8


def main() -> None:
    """Save numbers 0, 1, 2, ... to the path on the command line, each with a tensor full of it."""
    path = Path(sys.argv[1])
    for number in itertools.count():
        keep_previous(path)
        write_checkpoint({"number": number, "tensor": torch.full((MEGABYTES << 18,), float(number))}, path)


if __name__ == "__main__":
    main()
