"""``lightning-gpt evaluate``: perplexity and bits per byte of texts, and tasks of lm-evaluation-harness."""

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call, refuse_unread_flags, refuse_unused
from lightning_gpt.commands.data_section import parse_data_call
from lightning_gpt.commands.device import named_device
from lightning_gpt.commands.text_file import read_text_file
from lightning_gpt.console import LinePace, console, say
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.perplexity import Documents, ReadingOptions, TextScores, require_readable, score_texts
from lightning_gpt.json_text import to_json
from lightning_gpt.options import Count, Length, Range, Rows, Seed
from lightning_gpt.waiting import Waiting

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData

Shots = Annotated[int, Range(0, 1000)]
_OF_TEXTS = {"stride", "first_token"}
_USED = {
    "--text": _OF_TEXTS,
    "--config": {*_OF_TEXTS, "split", "documents"},
    "--tasks": {"limit", "shots", "task_code", "chat", "seed"},
}
"""What each form of the command reads of its other options."""


def evaluate(
    checkpoint: str,
    data: "TextData | None" = None,
    text: str | None = None,
    split: Literal["train", "val", "test"] = "val",
    documents: Documents = "apart",
    window: Length | None = None,
    stride: Length | None = None,
    first_token: bool = False,
    tasks: list[str] | None = None,
    limit: Count | None = None,
    shots: Shots | None = None,
    task_code: bool = False,
    chat: bool = False,
    seed: Seed = 0,
    batch_size: Rows = 8,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Measure how well a checkpoint predicts a text (--text), the documents of a config (--config), or does tasks.

    Texts are read in windows of the model's context. A window scores the tokens that no earlier one has read. Of a
    config's data section, only sources, prepared, val_share, test_share and split_by matter: the whole split is read,
    with the checkpoint's tokenizer.

    Args:
        checkpoint: A checkpoint written by fit or convert.
        data: The data section of a config.
        text: A file of UTF-8 text, read as one document.
        split: With --config, the split whose documents are read.
        documents: With --config, apart reads each document by itself; joined reads them as one text with
            <|endoftext|> between them.
        window: Most tokens that are read at once; the model's block_size if omitted.
        stride: Tokens from one window to the next; half the window if omitted. 1 gives every token the full context.
        first_token: Whether the first token of a text is scored, given <|endoftext|>.
        tasks: Task files of lm-evaluation-harness (.yaml), or names of its own tasks, instead of a text.
        limit: Most items of each task.
        shots: Solved examples before each item; those of the task's file if omitted.
        task_code: Whether task files may name Python functions and use templates without limits.
        chat: Whether tasks ask as a user of a chat does, by the tokenizer's chat template.
        seed: Seed for sampling in tasks that ask for it.
        batch_size: Windows, or items of a task, that are read together.
        precision: Precision of the weights.
        device: Where the model runs: cpu, cuda, cuda:N or mps.
        json: Whether to print one JSON object instead of a table.
    """
    options = dict(locals())
    given = [name for name, value in (("text", text), ("config", data), ("tasks", tasks)) if value is not None]
    if len(given) != 1:
        asked = f"{' and '.join(f'--{name}' for name in given)} given" if given else "nothing to evaluate"
        raise CallError(f"{asked}; give one of --text, --config or --tasks")
    refuse_unused(evaluate, options, _USED, f"--{given[0]}")
    where = named_device(device)
    texts = None if text is None else [_read(text)]
    if tasks is not None:
        from lightning_gpt.evaluation.tasks import run_tasks, table_of, tasks_at  # lm_eval is an extra

        loaded = tasks_at(tasks, task_code)
    read = Checkpoint.read(checkpoint)
    model, tokenizer = read.build(), read.tokenizer()
    model = (model.bfloat16() if precision == "bf16" else model.float()).to(where)
    size = window or model.config.block_size
    reading = ReadingOptions(size, stride or max(1, size // 2), batch_size, documents, first_token)
    require_readable(model, reading)
    if tasks is not None:
        results = run_tasks(model, tokenizer, loaded, size, batch_size, where, limit, shots, seed, chat)
        print(to_json(results) if json else table_of(results))
        return
    sources: Iterable[str] = texts if texts is not None else _texts(data, split)
    with _Progress() as progress:
        scores = score_texts(model, tokenizer, sources, reading, where, progress.show)
    print(to_json(_described(scores, reading)) if json else _table(scores, reading, bool(tokenizer.start)))


def _read(file: str) -> str:
    content = read_text_file("text", file)
    if not content:
        raise CallError(f"text {file!r} is empty")
    return content


def _texts(data: "TextData | None", split: Literal["train", "val", "test"]) -> Iterable[str]:
    assert data is not None
    data.vocab_size_to_train = None  # texts are read, not tokens
    data.setup({"train": "evaluate", "val": "validate", "test": "test"}[split])
    return data.texts(split)


def _described(scores: TextScores, reading: ReadingOptions) -> dict[str, Any]:
    return {**scores.as_dict(), "window": reading.window, "stride": reading.stride, "split_at": reading.documents}


def _table(scores: TextScores, reading: ReadingOptions, starts: bool) -> str:
    """The figures for people, and what they are figures of."""
    left_out = scores.tokens - scores.scored
    first = "the tokenizer's start" if starts else "<|endoftext|>" if reading.first_token else "nothing"
    between = "each by itself" if reading.documents == "apart" else "joined by <|endoftext|>"
    counted = (("document", scores.documents), ("word", scores.words), ("byte", scores.bytes))
    sizes = ", ".join(f"{number:,} {name}{'' if number == 1 else 's'}" for name, number in counted)
    them = "it" if left_out == 1 else "them"
    rows = [
        ("loss (nats per token)", f"{scores.loss:.4f}"),
        ("perplexity per token", f"{scores.perplexity:,.4f}"),
        ("perplexity per word", f"{scores.word_perplexity:,.4f}" if scores.words else "none: the text has no words"),
        ("bits per byte", f"{scores.bits_per_byte:.4f}"),
        ("perplexity by mean of windows", f"{scores.window_mean_perplexity:,.4f}"),
        ("read", f"{sizes}, {between}"),
        ("scored", f"{scores.scored:,} of {scores.tokens:,} tokens; {left_out:,} had nothing before {them}"),
        ("windows", f"{reading.window:,} tokens, a new one every {reading.stride:,}; before a text: {first}"),
    ]
    return "\n".join(f"{name:<30}{value}" for name, value in rows)


class _Progress:
    """Tokens scored and their perplexity: a live line on a terminal, elsewhere a printed line every 15 seconds."""

    def __enter__(self) -> Self:
        self._started, self._pace = monotonic(), LinePace()
        self._status = console.status("reading") if console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, scores: TextScores) -> None:
        """Show what has been scored."""
        if not scores.scored:
            return
        speed = scores.scored / max(monotonic() - self._started, 1e-9)
        line = f"{scores.scored:,} tokens scored, perplexity {scores.perplexity:,.2f}, {speed:,.0f} tokens/s"
        if self._status is not None:
            self._status.update(line)
        elif self._pace.is_due():
            say(line)


def run(args: list[str]) -> None:
    """Parse ``args`` and evaluate."""
    if any(argument.partition("=")[0] in ("--config", "--help", "-h") for argument in args):
        data, options = parse_data_call(evaluate, "evaluate", args, required=False)
        refuse_unread_flags(args, "evaluate", also_read=["prepared"])
    else:
        data, options = None, parse_function_call(evaluate, "evaluate", args, skip={"data"})
    with Waiting():
        evaluate(data=data, **options)
