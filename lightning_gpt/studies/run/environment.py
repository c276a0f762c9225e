"""What a cell ran with: the code, the packages and the machine."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning_gpt.hardware import cores, processor
from lightning_gpt.version import DIRTY, commit

_PACKAGES = ("lightning-gpt", "torch", "lightning", "tokenizers", "tiktoken", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """The code's git revision (None where it is not known), package versions and hardware, as plain values."""
    return {
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": gpu_names(),
    }


def gpu_names() -> list[str]:
    """The names of this machine's NVIDIA GPUs, in order, from ``nvidia-smi``, which needs no import of torch."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def visible_gpus() -> list[str]:
    """The GPUs that cells may use, as ``CUDA_VISIBLE_DEVICES`` names them: those it already lists, or all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(gpu_names()))]


def _git() -> dict[str, Any] | None:
    found = commit()
    return None if found is None else {"revision": found.removesuffix(DIRTY), "changed": found.endswith(DIRTY)}


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
