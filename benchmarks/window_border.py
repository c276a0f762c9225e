"""How long training waits for a batch where one window of rows ends and the next begins.

    python -m benchmarks.window_border                 a corpus that is made here
    python -m benchmarks.window_border --file TEXT     a file of yours
    python -m benchmarks.window_border --on cpu        steps that compute on this processor; otherwise they sleep, as
                                                       a processor does whose device computes

Reads through ``TextData`` and its loader as a training does. Prints, per packing and number of loader processes, the
median and the longest time until a batch was there, and that of the whole; nothing passes or fails.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.data import write_corpus
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.packing import PackingName
from lightning_gpt.data.sources.files import Files

PACKING_NAMES: tuple[PackingName, ...] = ("concatenate", "best_fit", "lanes")


def waits(data: TextData, batches: int, step_seconds: float, computes: bool) -> tuple[list[float], float]:
    """Seconds until each batch after the first was there, and seconds of it all.

    Args:
        data: The data, set up.
        batches: How many batches to take.
        step_seconds: What a step takes on an idle machine.
        computes: Whether a step computes on this processor rather than sleeping.
    """
    left = torch.ones(512, 512)
    start = time.perf_counter()
    left @ left
    start = time.perf_counter()
    for _ in range(20):
        left @ left
    products = max(1, int(step_seconds / ((time.perf_counter() - start) / 20)))
    loader, found = iter(data.train_dataloader()), []
    next(loader)
    begin = time.perf_counter()
    for _ in range(batches):
        if computes:
            for _ in range(products):
                left @ left
        else:
            time.sleep(step_seconds)
        start = time.perf_counter()
        next(loader)
        found.append(time.perf_counter() - start)
    return found, time.perf_counter() - begin


def main() -> None:
    """Parse the flags and run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a file of text")
    parser.add_argument("--megabytes", type=float, default=64, help="size of the corpus that is made otherwise, in MB")
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--window", type=int, default=16384, help="rows of a window")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--step", type=float, default=0.015, help="seconds of a step")
    parser.add_argument("--on", choices=["device", "cpu"], default="device", help="what a step does")
    parser.add_argument("--packings", nargs="+", choices=PACKING_NAMES, default=PACKING_NAMES)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    batches = options.window * 5 // 4 // options.batch_size
    with tempfile.TemporaryDirectory() as scratch:
        file = options.file or Path(scratch, "corpus.jsonl")
        if options.file is None:
            write_corpus(file, options.megabytes)
        for packing in options.packings:
            for workers in options.workers:
                source = Files(str(file), weight=1.0)
                source.countable = False  # counting it would take as long as all of this
                sizes = {"block_size": options.block_size, "shuffle_window": options.window, "eval_tokens": 10_000}
                data = TextData([source], batch_size=options.batch_size, num_workers=workers, packing=packing, **sizes)
                data.setup("fit")
                found, whole = waits(data, batches, options.step, options.on == "cpu")
                print(
                    f"{packing:<12} {workers} loader processes: waited {1e3 * median(found):7.2f} ms (median), "
                    f"{1e3 * max(found):8.1f} ms (longest); {len(found)} steps in {whole:6.2f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
