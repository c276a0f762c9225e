"""``lightning-gpt explore``: a page on the local address where a text is typed and a model watched."""

from pathlib import Path
from typing import Annotated

from lightning_gpt.checkpoint_series import series_of, steps_in
from lightning_gpt.commands.call import parse_function_call, refuse_unused
from lightning_gpt.commands.device import named_device
from lightning_gpt.commands.fresh_head import OF_WEIGHTS, fresh_head
from lightning_gpt.commands.serve import require_server
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference.prompts import require_utf8
from lightning_gpt.loading import load
from lightning_gpt.models import LanguageModel
from lightning_gpt.options import Length, Range, Seed

_LONGEST = 256  # every score of every head is kept: 140 MiB for 270 heads


def explore(
    checkpoint: str | None = None,
    compare: list[str] | None = None,
    series: str | None = None,
    text: str = "The city was founded in 1850",
    port: Annotated[int, Range(0, 65535)] = 8008,
    max_length: Length = _LONGEST,
    seed: Seed = 0,
    device: str = "cpu",
) -> None:
    """Explore a model in the browser: type a text, see every matrix change, take heads out, follow a number.

    The page is served on this machine's own address only, until Ctrl-C, and needs no network.

    Args:
        checkpoint: A checkpoint or run of fit, or a published model (a folder, or a .gguf file); a one-head model with
            random weights and GPT-2's vocabulary if omitted.
        compare: Further checkpoints, to be compared with it on the same text.
        series: A run whose series of checkpoints (fit --checkpoints.series log) can be compared step by step.
        text: The text shown first.
        port: Port on 127.0.0.1; 0 takes a free one.
        max_length: The longest text in tokens; the model's own limit if that is lower.
        seed: Seed for the random weights used without a checkpoint.
        device: Where the models run: cpu, cuda, cuda:N or mps.
    """
    refuse_unused(explore, dict(locals()), OF_WEIGHTS, "a checkpoint" if checkpoint is not None else "no checkpoint")
    require_utf8("text", text)
    require_server("explore")
    from lightning_gpt.exploring.app import create_explorer
    from lightning_gpt.exploring.looking import Passes
    from lightning_gpt.exploring.shelf import Explored, Shelf
    from lightning_gpt.serving.server import listening_socket, serve_pages_until_stopped

    where = named_device(device)
    sources = [checkpoint, *(compare or []), *_steps(series)]

    def read(number: int) -> Explored:
        source = sources[number]
        code, model, tokenizer = _fresh(seed) if source is None else _trained(source)
        return Explored(names[number], code, model.to(where), tokenizer, is_fresh=source is None)

    names = [f"random weights, seed {seed}" if source is None else source for source in sources]
    bound = listening_socket("127.0.0.1", port)
    shelf = Shelf(names, read)
    model = shelf.get(0).model
    limits = (max_length, model.config.block_size, model.context_limit, model.trace_limit)
    passes = Passes(shelf, min(limit for limit in limits if limit is not None))
    address = f"http://127.0.0.1:{bound.getsockname()[1]}/"
    serve_pages_until_stopped(
        create_explorer(passes, text), bound, f"exploring {names[0]} at {address} (Ctrl-C ends it)"
    )


def _fresh(seed: int) -> tuple[str, LanguageModel, Tokenizer]:
    code = f"torch.manual_seed({seed})\nmodel = SingleHeadModel(SingleHeadConfig()).eval()"
    return code, *fresh_head(seed)


def _trained(source: str) -> tuple[str, LanguageModel, Tokenizer]:
    path, _, step = source.rpartition("@") if not Path(source).exists() and "@" in source else (source, "", "")
    if step and not step.isdigit():
        raise CallError(f"{source!r} is neither a path nor RUN@STEP")
    model = load(path, int(step) if step else None)
    if not isinstance(model.tokenizer, Tokenizer):
        raise CallError(f"{source!r} came without a tokenizer, so no text can be typed")
    of_step = f", step={step}" if step else ""
    return f"model = load({path!r}{of_step})", model, model.tokenizer


def _steps(run: str | None) -> list[str]:
    """Every step of a run's series, as ``RUN@STEP``."""
    if run is None:
        return []
    steps = steps_in(series_of(Path(run)))
    if not steps:
        raise CallError(f"{run!r} has no series of checkpoints; fit writes one with --checkpoints.series log")
    return [f"{run}@{step}" for step in steps]


def run(args: list[str]) -> None:
    """Parse ``args`` and explore."""
    explore(**parse_function_call(explore, "explore", args))
