"""Which classes and functions a config may name: those below, and those of modules that ``--trust`` names.

All import paths in values pass one point of jsonargparse, whether they come from a flag, a config file, an environment
variable or ``--OPTION.help``; ``set_parsing_settings`` sets its policy. It checks a path twice: as given, before
anything is imported, and where the object is defined, since ``lightning.pytorch.loggers.tensorboard.os.system`` is
``posix.system``. It does not tell functions from classes. Functions are therefore also checked in the parsed config,
before anything in it is built or called.
"""

import inspect
from argparse import Namespace as ArgparseNamespace
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from lightning_gpt.errors import CallError
from lightning_gpt.trust import is_trusted, trusted_names

_CLASSES = (
    *(f"lightning_gpt.{package}" for package in ("data", "models", "training")),
    *("lightning_gpt.GPTModule", "lightning_gpt.SingleHeadModule"),  # by their public names
    *(
        f"lightning.pytorch.{package}"
        for package in ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
    ),
    *(f"lightning.fabric.{package}" for package in ("accelerators", "plugins", "strategies")),
    # types of options of Lightning's classes, for example of FSDPStrategy
    *("torch.amp", "torch.distributed.fsdp", "torch.nn", "torch.optim"),
    *(f"torch.{name}" for name in ("dtype", "bfloat16", "float16", "float32", "float64")),
)
"""Packages and names whose classes, and no functions, may be named."""

_HOOKS = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"
_FUNCTIONS = (
    "lightning.pytorch.callbacks.finetuning.multiplicative",  # a default of BackboneFinetuning
    *(f"{_HOOKS}.{name}" for name in ("allreduce_hook", "bf16_compress_hook", "fp16_compress_hook")),
)


def allow_known_code_only() -> None:
    """Have all parsers of this process refuse every import path but those of known and trusted code."""
    # never allowed by jsonargparse: itself, and what is not a dotted name
    trusted = [name for name in trusted_names() if all(part.isidentifier() for part in name.split("."))]
    trusted = [name for name in trusted if name.partition(".")[0] != "jsonargparse"]
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*_CLASSES, *_FUNCTIONS, *trusted],
        instantiate_subclass_spec_in_any=False,
    )


def require_known_functions(config: Namespace) -> None:
    """Refuse a parsed config that holds a function of an untrusted module.

    Raises:
        CallError: It does; names the option and the function.
    """
    for key, function in _functions(config, ""):
        path = f"{function.__module__}.{function.__qualname__}"
        if path not in _FUNCTIONS and not is_trusted(path):
            raise CallError(f"{key} is {path}{function_refused(path)}")


def function_refused(path: str) -> str:
    """Why a function is refused, and what to do, as the end of a message."""
    return f": a function must be in a module that --trust names; to use this one, add --trust {_module(path)}"


def class_refused(path: str) -> str:
    """Why a class is refused, and what to do, as the end of a message."""
    return f", which is not a known class of lightning_gpt, Lightning or torch; to use it, add --trust {_module(path)}"


def _module(path: str) -> str:
    return path.rpartition(".")[0]


def _functions(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The functions in a parsed value, with their options."""
    if isinstance(value, ArgparseNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _functions(inner, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple | set | frozenset):
        for number, inner in enumerate(value):
            yield from _functions(inner, f"{key}[{number}]")
    elif inspect.isroutine(value):
        yield key, value
