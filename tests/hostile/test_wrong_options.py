"""Every option of every command, class and variant, with every kind of wrong value: one line that names the option.

The options are read from the parsers, the registries and the signatures, so a new one is tested without an edit here.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lightning_gpt.cli import main
from lightning_gpt.commands.bench import bench
from lightning_gpt.commands.call import parse, parse_function_call
from lightning_gpt.commands.data_section import parse_data_call
from lightning_gpt.commands.generate import generate
from lightning_gpt.commands.inspect import inspect as inspect_command
from lightning_gpt.commands.lightning_cli import MODELS, TrainCLI
from lightning_gpt.commands.plan import plan_options
from lightning_gpt.commands.prepare import prepare
from lightning_gpt.commands.study import study
from lightning_gpt.commands.tokenizer import tokenizer
from lightning_gpt.data.sources.base import Source
from lightning_gpt.errors import CallError
from lightning_gpt.models.base import models
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.options import Range, shown
from lightning_gpt.training.module import LanguageModule
from tests.models.variants import PARTS, choices, fresh

HUGE = 10**5000
VALUES: list[Any] = ["three", "", math.nan, math.inf, -math.inf, -1, 0, 1.5, True, 10**400, HUGE, 10**30, 1e300, None]
VALUES += [[], [1], [HUGE], ["x"], [[]], {}, {"a": 1}, {"kind": []}]
TEXTS = {"three": "three", "": "", ".nan": math.nan, "-1": -1, "1.5": 1.5, "true": True, "null": None, "[[]]": [[]]}
TEXTS |= {"{a: 1}": {"a": 1}, "1e400": math.inf, "9" * 400: int("9" * 400), "9" * 5000: HUGE, f"[{'9' * 400}]": [HUGE]}
"""What is typed, and the value that it stands for."""


def is_allowed(hint: Any, value: Any) -> bool:
    """Whether an annotation allows a value: the definition that the product is compared with."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return is_allowed(inner[0], value) and all(in_range(each, value) for each in inner[1:])
    if kind in (Union, UnionType):
        return any(is_allowed(each, value) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind in (list, tuple):
        whole = isinstance(value, list) and (kind is list or ... in inner or len(value) == len(inner))
        return whole and all(is_allowed(inner[0], each) for each in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) < (2**53 if type(value) is int else 3.4e38)
    return hint in (Any, inspect.Parameter.empty) or (value is None if hint is NoneType else type(value) is hint)


def in_range(allowed: Range, value: Any) -> bool:
    least, above = (-math.inf if end is None else end for end in (allowed.least, allowed.above))
    most, below = (math.inf if end is None else end for end in (allowed.most, allowed.below))
    return bool(least <= value <= most and above < value < below)


def just_outside(hint: Any) -> Iterator[Any]:
    """The numbers next to the ends of every range in an annotation."""
    if isinstance(hint, Range):
        for end, beyond in ((hint.least, -1), (hint.most, 1), (hint.above, 0), (hint.below, 0)):
            if end is not None:
                yield end + beyond
    for each in get_args(hint):
        yield from just_outside(each)


class Case(NamedTuple):
    """One wrong, or unusual, value of one option."""

    option: str
    shown: str
    allowed: bool
    call: Callable[[], object]


def faults(cases: list[Case]) -> list[str]:
    """What is wrong with the cases that do not end as they should."""
    found = []
    for case in cases:
        what = f"{case.option}={case.shown[:60]}"
        try:
            case.call()
        except CallError as error:
            said = str(error)
            if not case.allowed and (case.option.rpartition(".")[2] not in said or len(said) > 300 or "\n" in said):
                found.append(f"{what}: {said}")
        except Exception as error:
            if isinstance(error, OSError) and case.allowed:
                continue  # a path that cannot be opened, which the command line reports
            found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        else:
            if not case.allowed:
                found.append(f"{what} was accepted")
    return found


def require_no_fault(cases: list[Case]) -> None:
    found = faults(cases)
    assert not found, f"{len(found)} of {len(cases)} cases:\n" + "\n".join(found[:50])


def typed(hint: Any, short: bool = False) -> dict[str, Any]:
    """What may be typed for an option, with the value that it stands for; a few only if ``short``."""
    texts = {text: TEXTS[text] for text in ("three", "true", "[[]]")} if short else TEXTS
    return texts | {str(value): value for value in just_outside(hint)}


def as_read(value: Any) -> Any:
    """A value as YAML gives it: a whole number of more than a hundred digits is text."""
    if isinstance(value, list):
        return [as_read(each) for each in value]
    return "9" * 101 if isinstance(value, int) and abs(value) >= 10**100 else value


def of_text(option: str, hint: Any, text: str, value: Any, call: Callable[[str], object]) -> Case:
    allowed = is_allowed(hint, as_read(value)) or is_allowed(hint, text)
    return Case(option, text, allowed, lambda: call(f"--{option}={text}"))


def options_of(parser: ArgumentParser) -> dict[str, Any]:
    """The annotations of a parser's options."""
    hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    return {dest: hint for dest, hint in hints.items() if hint is not None and not dest.endswith(".help")}


def parser_of(function: Callable[..., Any]) -> ArgumentParser:
    """The parser that a command makes of a function, or ``fit`` of a class."""
    parser = ArgumentParser(exit_on_error=False)
    if inspect.isclass(function):
        parser.add_class_arguments(function)
    else:
        parser.add_function_arguments(function)
    return parser


# ---- the commands


COMMANDS = {
    "generate": (generate, ("--checkpoint", "x")),
    "inspect": (inspect_command, ()),
    "study": (study, ("--config", "x")),
    "bench": (bench, ()),
    "plan": (plan_options, ()),
}


def called(function: Callable[..., None], command: str, args: list[str]) -> None:
    """What a command refuses before it reads a file: wrong options, and rules of sampling that there are not."""
    options = parse_function_call(function, command, args)
    Sampling(rules=tuple(options.get("rules") or ()))


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_command(command: str) -> None:
    function, needed = COMMANDS[command]
    cases = [
        of_text(option, hint, text, value, lambda typed: called(function, command, [*needed, typed]))
        for option, hint in options_of(parser_of(function)).items()
        for text, value in typed(hint, short="." in option).items()
    ]
    require_no_fault(cases)


@pytest.mark.parametrize("function", [prepare, tokenizer])
def test_options_of_a_command_that_needs_a_corpus(function: Callable[..., None], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {tokenizer: 300}")
    needed = ["--config", str(config), "--output", "x"] + (["--vocab_size", "300"] if function is tokenizer else [])
    hints = {name: each.annotation for name, each in inspect.signature(function).parameters.items()}
    cases = [
        of_text(option, hint, text, value, lambda typed: parse_data_call(function, "x", [*needed, typed]))
        for option, hint in hints.items()
        if option != "data"
        for text, value in typed(hint).items()
    ]
    require_no_fault(cases)


# ---- fit


class FitParser(TrainCLI):
    """Stops before anything is parsed."""

    def __init__(self) -> None:
        with suppress(StopIteration):
            super().__init__(["fit"])

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise StopIteration


FIT: ArgumentParser = FitParser()._subcommand_parsers["fit"]
OWNERS = {dest: group.group_class for dest, group in FIT.groups.items() if hasattr(group, "group_class")}
"""The classes that a section of a config builds."""
OWNERS |= {each.__name__: each for each in (*MODELS, *Source.__subclasses__()) if "tests" not in each.__module__}
OF_NO_CLASS = {
    "help",
    "config",
    "print_config",
    "seed_everything",
    "name",
    "non_finite",
    "ckpt_path",
    "weights",
    "weights_only",
}
SMALL = {"n_layer": 2, "n_head": 2, "dim": 8, "block_size": 8, "vocab_size": 16}
NEEDED: dict[str, dict[str, Any]] = {
    "GPTModule": SMALL,
    "GPTConfig": SMALL,
    "TextData": {"tokenizer": 300},
    "Hub": {"path": "x"},
    "SingleHeadModule": {"dim": 8, "vocab_size": 16},
    "SingleHeadConfig": {"dim": 8, "vocab_size": 16},
    "Files": {"paths": str(Path(__file__).parents[2] / "README.md")},
    "MuP": {"base_dim": 8},
    "MemoryGPTConfig": {**SMALL, "memory": {"kind": "tokens", "n_memory": 2}},
}
"""Arguments that a class needs, or that make it small."""


def test_every_option_of_fit_belongs_to_a_class_of_the_table_or_to_the_trainer() -> None:
    for option in options_of(FIT):
        assert option in OF_NO_CLASS or option.partition(".")[0] in {*OWNERS, "trainer", "model"}, option


@pytest.mark.parametrize("name", OWNERS)
def test_options_of_fit(name: str) -> None:
    parser = parser_of(OWNERS[name])
    needed = NEEDED.get(OWNERS[name].__name__, {})

    def make(typed: str) -> object:
        given = [f"--{option}={value}" for option, value in needed.items() if not typed.startswith(f"--{option}=")]
        return OWNERS[name](**vars(parser.instantiate(parse(parser, [*given, typed]))))

    cases = [
        of_text(option, hint, text, value, make)
        for option, hint in options_of(parser).items()
        for text, value in typed(hint, short="." in option).items()
    ]
    assert cases
    require_no_fault(cases)


WRONG_CALLS = {
    "--data.num_workers=100000": "num_workers is 100000; it must be a whole number from 0 to 1,024",
    "--data.tokenizer=4294967298": "tokenizer is 4294967298; it must be a whole number from 257 to 1,048,576 or text",
    "--seed_everything=-1": "seed_everything is -1; it must be true or false or a whole number from 0 to 4,294,967,295",
    "--model.n_layer=true": "model.n_layer is 'True'; allowed: a whole number",
    f"--model.n_layer={'9' * 5000}": "model.n_layer is '99999",
    "--model.n_layer=300000": "n_layer is 300000; it must be a whole number from 1 to 10,000",
    "--model.block_size=1000000000000": "block_size is 1000000000000; it must be a whole number from 1 to 16,777,216",
    "--model.optimization.lr=1e300": "lr is 1e+300; it must be a positive number, and at most 3.4e+38",
    "--model.optimization.lr=-1": "lr is -1.0; it must be a positive number",
    f"--data.val_share={'9' * 400}": "--data.val_share has a number too large for floating point",
    f"--model.optimization.lr={'9' * 400}": "model.optimization.lr is '99999",
    "--model.optimization.betas=[0.9,1]": "betas is (0.9, 1.0); it must be a list of 2: each a number of at least 0",
    "--model.attention={kind: window, window: true}": "attention window is True; it must be a whole number from 1 to "
    "16,777,216",
    "--model.qk_norm={kind: rms, eps: [1]}": "qk_norm eps is [1]; it must be a number of at least 0",
    "--checkpoints.every_n_steps=0": "checkpoints.every_n_steps is 0; it must be a whole number from 1 to "
    "1,000,000,000,000,000",
    "--averaging.decay=1": "averaging.decay is 1.0; it must be a number above 0 and below 1, or null",
    "--spikes.skip_steps=[[5]]": "spikes.skip_steps",
}


@pytest.mark.parametrize("argument", WRONG_CALLS, ids=lambda argument: argument[:40])
def test_fit_refuses_in_one_line(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-gpt", "fit", "--trainer.accelerator=cpu", argument])
    assert main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {WRONG_CALLS[argument]}")
    assert not list(tmp_path.rglob("*.*"))


# ---- classes, from Python


def classes() -> dict[str, type]:
    """Every class whose constructor has options, with the dataclasses that are options of others."""
    found = [*OWNERS.values(), *(config for _, config in models._classes.values()), Sampling]
    functions = [function for function, _ in COMMANDS.values()]
    for each in [*functions, *found]:
        found += dataclasses_in(each)
    return {each.__name__: each for each in found if not issubclass(each, LanguageModule)}


def dataclasses_in(function: Callable[..., Any]) -> Iterator[type]:
    for given in parameters(function).values():
        for part in (given.annotation, *get_args(given.annotation)):
            if dataclasses.is_dataclass(part) and inspect.isclass(part):
                yield part
                yield from dataclasses_in(part)


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)


CLASSES = classes()


@pytest.mark.parametrize("name", CLASSES)
def test_options_of_a_class(name: str) -> None:
    cases = [
        Case(option, shown(value), is_allowed(given.annotation, value), partial(build, name, option, value))
        for option, given in parameters(CLASSES[name]).items()
        if given.kind is not given.VAR_KEYWORD
        for value in [*VALUES, *just_outside(given.annotation)]
    ]
    require_no_fault(cases)


def build(name: str, option: str, value: Any) -> object:
    return CLASSES[name](**NEEDED.get(name, {}) | {option: value})


# ---- variants


def variant_cases(part: str) -> Iterator[Case]:
    registry = PARTS[part]
    for choice in choices(part):
        kind = choice if isinstance(choice, str) else choice["kind"]
        for option, given in {} if kind == "none" else registry.options(kind).items():
            for value in [*VALUES, *just_outside(given.annotation), *ends(given.annotation)]:
                changes = {part: {**(choice if isinstance(choice, dict) else {"kind": kind}), option: value}}
                yield Case(option, shown(value), is_allowed(given.annotation, value), partial(train, changes))


def ends(hint: Any) -> Iterator[float]:
    """The ends of the ranges of fractional numbers: small models of them can be built."""
    if get_origin(hint) is Annotated and get_args(hint)[0] is float:
        yield from (end for end in (hint.__metadata__[0].least, hint.__metadata__[0].most) if end is not None)
    for each in get_args(hint):
        yield from ends(each)


def train(changes: dict[str, Any]) -> None:
    """Build the model and compute the loss and its gradient, with or without rotary positions where they matter."""
    position = {"position": "rotary"} if "memory" in changes else {}
    ids = torch.arange(24)[None] % 17
    fresh({**position, **changes}).loss(ids[:, :-1], ids[:, 1:]).backward()


@pytest.mark.parametrize("part", PARTS)
def test_options_of_a_variant(part: str) -> None:
    require_no_fault(list(variant_cases(part)))


# ---- any value at all

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
SOME_VARIANTS = [
    (part, kind, option, given.annotation)
    for part, registry in PARTS.items()
    for kind in registry.names
    if kind != "none"
    for option, given in registry.options(kind).items()
]
SOME_CLASSES = [
    (name, option, given.annotation)
    for name, each in CLASSES.items()
    for option, given in parameters(each).items()
    if given.kind is not given.VAR_KEYWORD
]


@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
@hypothesis.given(st.sampled_from(SOME_CLASSES), anything)
def test_any_value_of_a_class(place: tuple[str, str, Any], value: Any) -> None:
    name, option, hint = place
    require_no_fault([Case(option, shown(value), is_allowed(hint, value), partial(build, name, option, value))])


@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
@hypothesis.given(st.sampled_from(SOME_VARIANTS), anything)
def test_any_value_of_a_variant(place: tuple[str, str, str, Any], value: Any) -> None:
    part, kind, option, hint = place
    call = partial(PARTS[part].read, {"kind": kind, option: value})
    require_no_fault([Case(option, shown(value), is_allowed(hint, value), call)])
