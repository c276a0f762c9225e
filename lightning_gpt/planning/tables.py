"""Plans as lines of text."""

from collections.abc import Iterator, Mapping, Sequence

from lightning_gpt.planning.devices import GIB
from lightning_gpt.planning.plan import Assumptions, Plan
from lightning_gpt.planning.speed import EXPOSED, optimal_tokens
from lightning_gpt.planning.training import Training
from lightning_gpt.planning.weights import by_component

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_MOST_STAGES = 8


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines: the first column to the left, the others to the right. The last row's cells may be missing."""
    columns = max(len(row) for row in rows)
    widths = [max((len(row[column]) for row in rows if column < len(row)), default=0) for column in range(columns)]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)),
        ]
        yield "  " + "  ".join(cells).rstrip()


def gib(size: float) -> str:
    """Bytes as GiB, in as many digits as they need."""
    value = size / GIB
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def short(number: float) -> str:
    """A number with three digits and a unit: ``6.89 G``."""
    power = 0
    while abs(number) >= 999.5 and power < len(_UNITS) - 1:
        number, power = number / 1000, power + 1
    digits = f"{number:.0f}" if abs(number) >= 100 or power == 0 else f"{number:.3g}"
    return f"{digits} {_UNITS[power]}".rstrip()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def model_lines(training: Training) -> Iterator[str]:
    """Parameters by component, FLOPs and compute-optimal tokens."""
    yield "model"
    rows = [("parameters", "number")]
    rows += [(component, f"{number:,}") for component, number in by_component(training.weights).items()]
    rows.append(("all", f"{training.parameters:,}"))
    if training.active != training.parameters:
        rows.append(("active per token", f"{training.active:,}"))
    yield from aligned(rows)
    yield ""
    rows = [
        ("FLOPs per token", ""),
        ("forward", short(sum(layer for layer, _ in training.layer_flops) + training.head_flops)),
    ]
    rows.append(("training", short(training.flops)))
    yield from aligned(rows)
    yield ""
    yield "compute-optimal tokens (Hoffmann et al. 2022)"
    yield from aligned([(rule, short(tokens)) for rule, tokens in optimal_tokens(training.active).items()])


def memory_lines(made: Plan) -> Iterator[str]:
    """Memory by component, for each stage where they differ."""
    shown = list(enumerate(made.stages))
    several = len(shown) > 1
    if len(shown) > _MOST_STAGES:
        fullest = made.stages.index(made.fullest)
        shown = [shown[number] for number in sorted({0, fullest, len(shown) - 1})]
    yield "memory of a device, GiB"
    rows = [("", *(f"stage {number}" for number, _ in shown))] if several else []
    for part in made.stages[0].parts():
        rows.append((part, *(gib(stage.parts()[part]) for _, stage in shown)))
    rows.append(("peak", *(gib(stage.total) for _, stage in shown)))
    if any(stage.host for _, stage in shown):
        rows.append(("waiting in the CPU's", *(gib(stage.host) for _, stage in shown)))
    rows.append(("usable", *(gib(made.usable) for _ in shown)))
    rows.append(("left", *(gib(made.usable - stage.total) for _, stage in shown)))
    yield from aligned(rows)


def checkpointing_lines(peaks: Mapping[str, float], usable: float, chosen: str) -> Iterator[str]:
    """The peak under each checkpointing."""
    yield "peak of the fullest device by checkpointing, GiB"
    rows = []
    for mode, peak in peaks.items():
        verdict = "fits" if peak <= usable else f"lacks {gib(peak - usable)}"
        rows.append((f"{mode} (chosen)" if mode == chosen else mode, gib(peak), verdict))
    yield from aligned(rows)


def traffic_lines(made: Plan) -> Iterator[str]:
    """Bytes that a device sends in a step, by axis."""
    yield "communication of a device in a step"
    rows = [("axis", "devices", "sent, GiB", "link", "time", "products")]
    for axis, each in made.traffic.items():
        size, waits = made.layout.size(axis), "wait" if axis in EXPOSED else "overlap"
        link = "within a node" if each.link == "node" else "between nodes"
        rows.append((axis, str(size), gib(each.sent), link, duration(each.seconds), waits))
    yield from aligned(rows)


def time_lines(made: Plan, training: Training, assumed: Assumptions) -> Iterator[str]:
    """The time of a step and of a run."""
    time = made.time
    yield f"time of a step, products at {assumed.share_of_peak:.0%} of the device's peak"
    rows = [("products", duration(time.products))]
    rows += [
        (what, duration(value))
        for what, value in (
            ("communication that products wait for", time.exposed),
            ("communication beside them", time.hidden),
            ("pipeline bubble", time.bubble),
            ("optimizer", time.optimizer),
        )
        if value
    ]
    rows.append(("step", duration(time.total)))
    rows.append(("tokens per second", f"{made.tokens_per_second:,.0f}"))
    rows.append(("model FLOPs utilisation", f"{made.utilisation / made.device.rate(training.precision):.1%}"))
    yield from aligned(rows)
    yield ""
    yield "time of a run"
    rows = []
    if training.steps is not None:
        tokens = training.steps * made.tokens
        per = tokens / training.active
        rows.append((f"{training.steps:,} steps: {short(tokens)} tokens, {per:.3g} per parameter", _run(made, tokens)))
    rows += [(rule, _run(made, tokens)) for rule, tokens in optimal_tokens(training.active).items()]
    yield from aligned(rows)


def _run(made: Plan, tokens: float) -> str:
    seconds = tokens / made.tokens_per_second
    return f"{duration(seconds)}, {short(seconds / 3600 * made.layout.devices)} device hours"


def plan_lines(made: Plan, training: Training, assumed: Assumptions) -> Iterator[str]:
    """Everything about one layout."""
    words = made.layout.described()
    sequence = ", sequence" if made.layout.sequence else ""
    schedule = f", {made.layout.schedule}" if made.layout.pipeline > 1 else ""
    yield f"layout: {words}{sequence}{schedule}, on {made.layout.devices:,} {made.device.name}"
    batches = f"{made.micro_batches} micro-batch{'es' * (made.micro_batches > 1)}"
    accumulated = f"{batches} of {made.rows} row{'s' * (made.rows > 1)} in each process"
    yield f"  {training.precision}, {training.optimizer}, {made.tokens:,} tokens per step: {accumulated}"
    if made.layout.pipeline > 1 or made.training.rows != training.rows:
        each = f"data.batch_size {made.training.rows}, {made.training.batches(made.layout)} accumulated"
        yield f"  {each}; the Trainer's intervals and limits count such batches"
    for part in (memory_lines(made), traffic_lines(made) if made.traffic else (), time_lines(made, training, assumed)):
        lines = list(part)
        if lines:
            yield ""
            yield from lines
