"""``lightning-gpt serve``: a checkpoint behind OpenAI's HTTP interface."""

import importlib.util
import ipaddress
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.commands.device import named_device
from lightning_gpt.commands.generate import Precision, rounded
from lightning_gpt.console import say
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.options import Length, Range

Port = Annotated[int, Range(0, 65535)]
Slots = Annotated[int, Range(1, 4096)]
Queue = Annotated[int, Range(0, 2**16)]
Seconds = Annotated[float, Range(above=0, most=10**6)]
_NEEDED = ("fastapi", "uvicorn")
_LONGEST = 2048  # a longer text is served if it is asked for: the memory of every slot is as long


def serve(
    checkpoint: str,
    host: str = "127.0.0.1",
    port: Port = 8000,
    name: str | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    token: str | None = None,
    token_file: str | None = None,
    slots: Slots = 16,
    queue: Queue = 64,
    max_length: Length | None = None,
    max_tokens: Length | None = None,
    prefill: Length = 256,
    timeout: Seconds = 600.0,
    grace: Annotated[float, Range(0, 10**6)] = 30.0,
) -> None:
    """Serve a checkpoint: OpenAI's /v1/completions, /v1/chat/completions and /v1/models, until it is stopped.

    Args:
        checkpoint: A checkpoint written by fit or convert, such as runs/quickstart/version_0/checkpoints/last.ckpt.
        host: Address to listen at; 127.0.0.1 is reached from this machine only, 0.0.0.0 from others too.
        port: Port to listen at; 0 takes a free one.
        name: Name of the model in requests; the checkpoint's path if omitted.
        device: Where the model runs: cpu, cuda, cuda:N or mps.
        precision: Precision of the weights: fp32 as trained; bf16 and int8 (by row) are faster and change the
            probabilities slightly.
        token: What clients must send as their API key. Other users of this machine may see it in the list of processes;
            they do not see token_file.
        token_file: A file whose first line is the token.
        slots: The most texts that are generated at once; memory is allocated for all of them.
        queue: The most texts that wait for a slot; further requests are refused with status 429.
        max_length: The longest text in tokens, prompt included; the model's block_size if omitted, but at most 2,048.
        max_tokens: The most tokens that a request may generate for one text; max_length if omitted.
        prefill: The most tokens of prompts that are read between two tokens of running texts.
        timeout: The longest that a request may take in seconds, waiting included.
        grace: Seconds to finish accepted requests after Ctrl-C or SIGTERM; what is left is cut off.
    """
    require_server("serve")
    from lightning_gpt.serving.app import create_app
    from lightning_gpt.serving.engine import Engine
    from lightning_gpt.serving.limits import Limits
    from lightning_gpt.serving.server import listening_socket, serve_until_stopped
    from lightning_gpt.serving.service import Service

    where, secret = named_device(device), _secret(token, token_file)
    bound = listening_socket(host, port)
    read = Checkpoint.read(checkpoint)
    model, tokenizer = rounded(read.build(), precision).to(where), read.tokenizer()
    longest = _longest(model, max_length)
    engine = Engine(model, tokenizer, slots, queue, longest, prefill)
    allocated = engine.allocate()
    limits = Limits(max_tokens or longest, timeout, choices=min(slots + queue, 128))
    service = Service(engine, name or checkpoint, limits)
    address = f"{_in_address(host)}:{bound.getsockname()[1]}"
    if not _is_local(host) and secret is None:
        say(f"everyone who reaches {address} can use this server; --token_file asks for a token")
    if allocated is None:
        say("this model's state cannot be divided by rows, so texts are generated one at a time")
    size = "memory allocated for each text" if allocated is None else f"{allocated / 2**20:,.1f} MiB"
    message = f"serving {service.name} at http://{address}/v1 ({slots} slots of {longest:,} tokens: {size})"
    app = create_app(service, secret, _hosts(host))
    serve_until_stopped(app, engine, bound, message, grace)


def require_server(command: str) -> None:
    """Refuse a command that answers requests where the packages for it are not installed.

    Raises:
        CallError: Names them.
    """
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise CallError(f"{command} needs {' and '.join(missing)}: pip install -e '.[serve]'")


def _secret(token: str | None, token_file: str | None) -> str | None:
    """The token that clients must send."""
    if token is not None and token_file is not None:
        raise CallError("token and token_file cannot be combined: leave one of them out")
    given = token
    if token_file is not None:
        lines = Path(token_file).read_text("utf-8", "replace").splitlines()
        given = lines[0].strip() if lines else ""
    if given is not None and not (given.isascii() and given.isprintable() and given and " " not in given):
        raise CallError("the token must be printable ASCII without spaces, and not empty")
    return given


def _longest(model: LanguageModel, max_length: int | None) -> int:
    block_size: int = model.config.block_size
    if max_length is None:
        return min(block_size, _LONGEST)
    if not 2 <= max_length <= block_size:
        raise CallError(
            f"max_length is {max_length}; it must be from 2 to the model's block_size, which is {block_size}"
        )
    return max_length


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(host: str) -> Collection[str] | None:
    """The names by which a local server is called; another one is called by names that only its users know."""
    return {"localhost", "127.0.0.1", "[::1]", _in_address(host)} if _is_local(host) else None


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def run(args: list[str]) -> None:
    """Parse ``args`` and serve."""
    serve(**parse_function_call(serve, "serve", args))
