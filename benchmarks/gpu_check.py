"""A first look at a GPU in one command: what fails first comes first, and what was not reached is said.

``python -m benchmarks.gpu_check --folder gpu_check`` runs each look as a process with a share of the time, and writes
its output to a file of its own. It needs no network. Packages that the device's Python lacks may lie as wheels in a
folder given by ``--wheels``; they are installed beside the results, not into the environment.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lightning_gpt.console import say

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class DeviceLook:
    """One look.

    Args:
        name: Its name, and that of its file.
        command: What it runs, after the Python interpreter.
        share: Its share of the whole time.
    """

    name: str
    command: tuple[str, ...]
    share: float


def looks(peer_dir: str | None) -> list[DeviceLook]:
    """All looks, in their order."""
    peers = () if peer_dir is None else ("--peer_dir", peer_dir)
    bench = ("-m", "lightning_gpt", "bench", "--device", "cuda", "--quick", "true", *peers)
    pytest = ("-m", "pytest", "-q", "-n", "4", "-p", "no:cacheprovider", "--tb=short")
    return [
        DeviceLook("device", ("-c", _DEVICE), 0.03),
        DeviceLook("tests-gpu", (*pytest, "tests/gpu", "--deselect", "tests/gpu/test_fit.py"), 0.22),
        DeviceLook("tests-fit", (*pytest, "tests/gpu/test_fit.py"), 0.15),
        DeviceLook("steps", (*bench, "--rows", "gpu_step", "--output", "bench-steps"), 0.2),
        DeviceLook("tests-models", (*pytest, "--device", "cuda", "tests/models"), 0.2),
        DeviceLook("generation", (*bench, "--rows", "generate,generate_batch", "--output", "bench-generate"), 0.08),
        DeviceLook("profile", (*bench, "--rows", "compile", "--profile", "true", "--output", "bench-profile"), 0.12),
    ]


_DEVICE = """
import torch
from benchmarks.machine import describe
print(torch.cuda.get_device_properties(0))
for name, value in describe(torch.device("cuda"), 3).items():
    print(f"{name}: {value}")
"""


def check(folder: Path, minutes: float, peer_dir: str | None, wheels: str | None) -> bool:
    """Run the looks within ``minutes``; returns whether all ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    folder, end = folder.resolve(), time.monotonic() + 60 * minutes
    paths = [str(ROOT)]
    if wheels is not None:
        site = folder / "site"
        files = sorted(map(str, Path(wheels).glob("*.whl")))
        install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), *files)
        subprocess.run([sys.executable, *install], check=True)
        paths.insert(0, str(site))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    table = ["| look | result | seconds |", "| --- | --- | ---: |"]
    well = True
    for look in looks(peer_dir):
        left, start = end - time.monotonic(), time.monotonic()
        limit = min(left, 60 * minutes * look.share * 1.5)
        result = "not reached" if limit <= 0 else _run(look, folder, environment, limit)
        well = well and result == "ok"
        table.append(f"| {look.name} | {result} | {time.monotonic() - start:.0f} |")
        say(table[-1])
        (folder / "summary.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    return well


def _run(look: DeviceLook, folder: Path, environment: dict[str, str], limit: float) -> str:
    with (folder / f"{look.name}.txt").open("w", encoding="utf-8") as file:
        output = [str(folder / part) if part.startswith("bench-") else part for part in look.command]
        command = [sys.executable, *output]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"stopped after {limit:.0f} s"
    return "ok" if status == 0 else f"exit status {status}"


def main() -> None:
    """Read the options and run the looks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="gpu_check", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes for all looks")
    parser.add_argument("--peer_dir", help="folder with nanoGPT/model.py, to compare steps with")
    parser.add_argument("--wheels", help="folder with wheels of packages that this Python lacks")
    options = parser.parse_args()
    sys.exit(0 if check(Path(options.folder), options.minutes, options.peer_dir, options.wheels) else 1)


if __name__ == "__main__":
    main()
