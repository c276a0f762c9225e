"""Tasks of lm-evaluation-harness: loading them without surprises, running them, and their figures."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.models import LanguageModel
from lightning_gpt.options import shown
from lightning_gpt.safe_yaml import TaggedText, read_yaml

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_FUNCTION = "!function"
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until", "multiple_choice")


class LoadedTasks:
    """Tasks that are ready to run.

    Args:
        names: Their names.
        tasks: The tasks themselves, which have read their data.
        manager: What loaded them.
    """

    def __init__(self, names: list[str], tasks: list[Any], manager: "TaskManager") -> None:
        self.names, self.tasks, self.manager = names, tasks, manager


def tasks_at(given: Sequence[str], code: bool) -> LoadedTasks:
    """Load tasks from files, or by the names that the harness gives to those it comes with.

    Args:
        given: Paths of ``.yaml`` files, or names.
        code: Whether files may name functions, and templates use Python's own objects.

    Raises:
        CallError: ``lm_eval`` is not installed, a file is missing or wrong, a name is unknown, or a task's data cannot
            be read.
    """
    if not given:
        raise CallError("tasks is empty; give at least one task file or name")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval.api.metrics  # noqa: F401  (registers them)
        from lm_eval import utils
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise CallError(f"tasks need lm-evaluation-harness ({error}): pip install -e '.[eval]'") from None
    files = [each for each in given if each.endswith((".yaml", ".yml"))]
    for file in files:
        _check(Path(file), code, ())
    if not code:
        utils.env = _sandboxed(utils.env)
    manager = TaskManager(include_defaults=len(files) < len(given))
    loaded: list[Any] = []
    for each in given:
        try:
            loaded += manager.load([each])["tasks"].values()
        except CallError:
            raise
        except Exception as error:  # whatever the harness, a template or a data set raises
            raise CallError(f"task {each!r} cannot be loaded: {_reason(error)}") from None
    return LoadedTasks([task.task_name for task in loaded], loaded, manager)


def _reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, 200)


def _check(path: Path, code: bool, seen: tuple[Path, ...]) -> None:
    """Refuse a file that is not a task, before the harness reads it, and what runs code unless that is allowed.

    Raises:
        CallError: Says what is wrong.
    """
    name = f"task file {str(path)!r}"
    if path in seen:
        raise CallError(f"{name} includes itself")
    content = read_yaml(path, "task file", tags=(_FUNCTION,))
    for part in _within(content):
        if isinstance(part, TaggedText) and not code:
            raise CallError(f"{name} names the function {str(part)!r}: allow its code with --task_code true")
        metrics = part.get("metric_list", []) if isinstance(part, dict) else []
        for metric in metrics if isinstance(metrics, list) else []:
            _check_metric(metric, name, code)
    included = content.get("include", [])
    for each in included if isinstance(included, list) else [included]:
        _check(path.parent / str(each), code, (*seen, path))
    if not seen:
        if "include" not in content and not isinstance(content.get("task", content.get("group")), str | list):
            raise CallError(f"{name} has no key 'task' with the task's name")
        kind = content.get("output_type", _KINDS[0])
        if kind not in _KINDS:
            raise CallError(f"{name}: output_type is {kind!r}; it must be one of {', '.join(_KINDS)}")


def _check_metric(metric: Any, name: str, code: bool) -> None:
    """Refuse a metric that the harness would load as a script, from a folder or the Hub."""
    from lm_eval.api.registry import metric_registry

    asked = metric.get("metric") if isinstance(metric, dict) else metric
    if isinstance(asked, TaggedText) or code:
        return
    if (
        not isinstance(asked, str)
        or asked not in metric_registry
        or (isinstance(metric, dict) and metric.get("hf_evaluate"))
    ):
        raise CallError(
            f"{name}: the metric {shown(asked)} is none of the harness's own, and would be loaded as a script; allow "
            f"that with --task_code true"
        )


def _within(value: Any) -> Iterator[Any]:
    """A value and everything in it."""
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(part)


def _sandboxed(environment: Any) -> Any:
    """The harness's templates without access to Python's own objects."""
    from jinja2.sandbox import SandboxedEnvironment

    sandbox = SandboxedEnvironment(
        loader=environment.loader,
        undefined=environment.undefined,
        keep_trailing_newline=environment.keep_trailing_newline,
    )
    sandbox.filters.update(environment.filters)
    return sandbox


def run_tasks(
    model: LanguageModel,
    tokenizer: Tokenizer,
    loaded: LoadedTasks,
    window: int,
    batch_size: int,
    device: torch.device,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    chat: bool = False,
) -> dict[str, dict[str, Any]]:
    """The figures of each task, by its name and theirs.

    Args:
        model: The model, on ``device``.
        tokenizer: Its tokenizer.
        loaded: The tasks.
        window: The most tokens that are read at once.
        batch_size: Items that are read together.
        device: Where the model is.
        limit: Most items of each task.
        shots: Solved examples before each item; the task's own number if None.
        seed: Seed of sampling, and of choosing examples.
        chat: Whether items are messages of a user, in the tokenizer's chat template.

    Raises:
        CallError: A task asks for what cannot be done, or its templates do not fit its data.
    """
    from lm_eval import simple_evaluate

    from lightning_gpt.evaluation.harness import HarnessModel

    harness = HarnessModel(model, tokenizer, window, batch_size, device, seed)
    try:
        answer = simple_evaluate(
            harness,
            tasks=loaded.tasks,
            task_manager=loaded.manager,
            limit=limit,
            num_fewshot=shots,
            apply_chat_template=chat,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (CallError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a template that names a missing field, data of another shape, a metric's own
        raise CallError(f"tasks {', '.join(loaded.names)}: {_reason(error)}") from None
    return {name: _figures(answer["results"][name], answer["n-samples"][name]) for name in loaded.names}


def _figures(found: dict[str, Any], samples: dict[str, int]) -> dict[str, Any]:
    values = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {"items": samples["effective"]} | {
        name.removesuffix(",none"): value for name, value in values.items() if "_stderr" not in name
    }


def table_of(results: dict[str, dict[str, Any]]) -> str:
    """One line for each figure of each task."""
    rows = [
        (task, name, f"{value:,}" if isinstance(value, int) else f"{value:,.4f}")
        for task, figures in results.items()
        for name, value in figures.items()
        if name != "sample_len"
    ]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(2)]
    return "\n".join(f"{task:<{widths[0]}}{name:<{widths[1]}}{value}" for task, name, value in rows)
