"""Wrong calls of every command: what is typed, the exit status, and a pattern that the one line of the error holds.

The working folder is made by :func:`tests.hostile.test_wrong_calls.folder`: ``tiny.yaml`` and its ``corpus.jsonl``, a
trained ``last.ckpt``, ``base.yaml`` for studies, and files of the wrong kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call.

    Args:
        args: What is typed after ``lightning-gpt``.
        pattern: What the error holds; empty if the call says nothing.
        status: The exit status.
        files: Files to write first, by name.
        env: Environment variables.
        limits: Resource limits, by their names in ``resource``.
        out: A file that takes standard output.
        changes: Changes of the surroundings, as of :mod:`tests.hostile.surrounded`.
    """

    args: tuple[str, ...]
    pattern: str
    status: int = 2
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    out: str | None = None
    changes: tuple[str, ...] = ()


FIT = ("fit", "--config", "tiny.yaml")
TOO_LONG = "x" * 300
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
DIGITS = "9" * 5000
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def fit(*args: str, pattern: str, **more: Any) -> Call:
    """``fit`` with the tiny config and options."""
    return Call((*FIT, *args), pattern, **more)


def config(text: str | bytes, pattern: str, *args: str, **more: Any) -> Call:
    """``fit`` with a second config file."""
    return Call((*FIT, "--config", "w.yaml", *args), pattern, files={"w.yaml": text}, **more)


def prepare(text: str | bytes, pattern: str, **more: Any) -> Call:
    """``prepare`` with a config file."""
    return Call(("prepare", "--config", "w.yaml", "--output", "out"), pattern, files={"w.yaml": text}, **more)


def tokenizer(*args: str, pattern: str, **more: Any) -> Call:
    """``tokenizer`` with the tiny config."""
    return Call(("tokenizer", "--config", "tiny.yaml", *args), pattern, **more)


def study(text: str, pattern: str, *args: str, **more: Any) -> Call:
    """``study`` with a study file."""
    return Call(("study", "--config", "s.yaml", *args), pattern, files={"s.yaml": text}, **more)


def sources(*given: Any) -> tuple[str, str]:
    """The option that sets the sources."""
    return "--data.sources", json.dumps(given)


def files_source(paths: Any, **more: Any) -> tuple[str, str]:
    """The option that sets one source of files."""
    return sources({"class_path": "Files", "init_args": {"paths": paths, **more}})


MAPPING = "allowed: a mapping"
SECTIONS = ("trainer", "data", "checkpoints", "samples", "diagnostics", "upcycle", "grow", "averaging", "spikes")

SHAPES: dict[str, Call] = {
    **{f"{name} is a list": config(f"{name}: [1]", rf"'w.yaml': {name} is '\[1\]'; {MAPPING}") for name in SECTIONS},
    **{f"{name} is a number": config(f"{name}: 3", rf"'w.yaml': {name} is '3'; {MAPPING}") for name in SECTIONS},
    **{f"{name} is empty": config(f"{name}:", rf"'w.yaml': {name} is 'null'; {MAPPING}") for name in SECTIONS},
    "trainer is text": config("trainer: fast", rf"'w.yaml': trainer is 'fast'; {MAPPING}"),
    "data is text": config("data: embedded", rf"'w.yaml': data is 'embedded'; {MAPPING}"),
    "data is true": config("data: true", rf"'w.yaml': data is 'True'; {MAPPING}"),
    "data is a date": config("data: 2026-01-31", rf"'w.yaml': data is '2026-01-31'; {MAPPING}"),
    "data is nan": config("data: .nan", rf"'w.yaml': data is 'nan'; {MAPPING}"),
    "data is a list of mappings": config("data:\n- batch_size: 3", rf"'w.yaml': data is .*; {MAPPING}"),
    "empty section among others": config("name: x\ndata:\nsamples: {}", rf"data is 'null'; {MAPPING}"),
    "optimization is a list": config(
        "model: {init_args: {optimization: [1]}}", rf"'w.yaml': model.optimization is '\[1\]'; {MAPPING}"
    ),
    "optimization is empty": config(
        "model: {init_args: {optimization: }}", rf"model.optimization is 'null'; {MAPPING}"
    ),
    "optimization is a number": config("model: {optimization: 3}", rf"model.optimization is '3'; {MAPPING}"),
    "optimization is text": config("model: {optimization: fast}", rf"optimization is 'fast'; {MAPPING}"),
    "optimization at the top": config("optimization: [1]", "'w.yaml': unknown key 'optimization'"),
    "model is a list": config("model: [1]", r"'w.yaml': model is '\[1\]'; it must be a mapping .*LanguageModule"),
    "model is a number": config("model: 3", "'w.yaml': model is '3'; it must be a mapping .*LanguageModule"),
    "model is empty": config("model:", "required and missing: --model"),
    "unknown model option": config("model: {x: [1]}", "unknown key 'x' under model; .*keys of GPTModule"),
    "init_args is empty": config("model: {init_args: }", f"'w.yaml': model.init_args is 'null'; {MAPPING}"),
    "init_args is a list": config("model: {init_args: [1]}", rf"model.init_args is '\[1\]'; {MAPPING}"),
    "class_path is a list": config("model: {class_path: [1]}", r"model.class_path is '\[1\]'; allowed: text"),
    "class_path is empty": config("model: {class_path: }", "model.class_path is 'null'; allowed: text"),
    "class_path is a number": config("data: {sources: [{class_path: 3}]}", "sources.0.class_path is '3'; .*text"),
    "class_path of no class": config(
        "model: {class_path: nope}", "model: no class is named 'nope'; known are GPTModule"
    ),
    "init_args of a source": config(
        "data: {sources: [{class_path: Files, init_args: 3}]}", f"data.sources.0.init_args is '3'; {MAPPING}"
    ),
    "a source is a number": config("data: {sources: [3]}", r"data.sources is '\[3\]'; it must be a mapping .*Source"),
    "sources is a number": config("data: {sources: 3}", "data.sources is '3'; allowed: a list"),
    "sources is a mapping": config("data: {sources: {a: 3}}", "data.sources is .*; allowed: a list"),
    "batch_size is a list": config("data: {batch_size: [1]}", r"batch_size is '\[1\]'; allowed: a whole number"),
    "batch_size is a mapping": config("data: {batch_size: {a: 1}}", "batch_size is .*; allowed: a whole number"),
    "name is a list": config("name: [1]", r"name is '\[1\]'; allowed: text"),
    "seed is a list": config("seed_everything: [1]", r"seed_everything is '\[1\]'; allowed: .*a whole number"),
    "seed is negative": config("seed_everything: -1", "seed"),
    "callbacks is a number": config("trainer: {callbacks: 3}", "callbacks is '3'; it must be a mapping .*Callback"),
    "logger is a number": config("trainer: {logger: 3}", "trainer.logger is '3'; it must be a mapping .*Logger"),
    "plugins is a number": config("trainer: {plugins: 3}", "trainer.plugins is '3'"),
    "unknown key": config("modle: {n_layer: 3}", "'w.yaml': unknown key 'modle'; did you mean model"),
    "unknown key of no likeness": config("zzz: 3", "'w.yaml': unknown key 'zzz'; the keys are averaging, checkpoints"),
    "unknown trainer option": config("trainer: {max_stepz: 3}", "unknown key 'trainer.max_stepz'; did you mean"),
    "unknown data option": config("data: {batchsize: 3}", "unknown key 'data.batchsize'; did you mean"),
    "options under fit": config("fit: {trainer: {max_steps: 1}}", "'w.yaml': unknown key 'fit'; the keys are"),
    "options under fit of the wrong shape": config("fit: [1]", "'w.yaml': unknown key 'fit'"),
    "options under validate": config("validate: {data: [1]}", "'w.yaml': unknown key 'validate'"),
    "a config in a config": config("config: w.yaml", "'w.yaml': unknown key 'config'"),
    "print_config in a config": config("print_config: x", "'w.yaml': unknown key 'print_config'"),
    "a number as a key": config("1: 2", "'w.yaml': unknown key 1; the keys are"),
    "null as a key": config("~: 2", "'w.yaml': unknown key None; the keys are"),
    "true as a key": config("yes: 2", "'w.yaml': unknown key True; the keys are"),
    "a number as a key of a section": config("data: {1: 2}", "'w.yaml': Key must be a string, got: 1"),
    "an empty key": config('"": 2', "'w.yaml': unknown key ''"),
    "a dotted key": config("data..batch_size: 2", "'w.yaml': unknown key 'data..batch_size'"),
    "a key of spaces": config('" ": 2', "'w.yaml': unknown key ' '"),
    "in validate": Call(
        ("validate", "--config", "tiny.yaml", "--config", "w.yaml"),
        rf"'w.yaml': data is '\[1\]'; {MAPPING}",
        files={"w.yaml": "data: [1]"},
    ),
    "in test": Call(("test", "-c", "w.yaml"), rf"'w.yaml': trainer is '3'; {MAPPING}", files={"w.yaml": "trainer: 3"}),
    "in predict": Call(("predict", "--config=w.yaml"), "unknown key 'a'", files={"w.yaml": "a: 3"}),
    "in the first of two files": Call(
        ("fit", "--config", "w.yaml", "--config", "tiny.yaml"),
        rf"'w.yaml': data is '\[1\]'; {MAPPING}",
        files={"w.yaml": "data: [1]"},
    ),
    "in a recipe": Call(
        (*FIT, "--config", "r/muon.yaml"),
        rf"'r/muon.yaml': model.optimization is '\[muon\]'|'r/muon.yaml': model.optimization is .*muon.*; {MAPPING}",
        files={"r/muon.yaml": "model: {init_args: {optimization: [muon]}}"},
    ),
    "data as an option": fit("--data", "3", pattern=f"data is '3'; {MAPPING}"),
    "data as an option, a list": fit("--data", "[1]", pattern=rf"data is '\[1\]'; {MAPPING}"),
    "trainer as an option, a list": fit("--trainer=[1]", pattern=rf"trainer is '\[1\]'; {MAPPING}"),
    "optimization as an option": fit("--model.optimization", "[1]", pattern=r"optimization is '\[1\]'; .*mapping"),
    "data as a folder": fit("--data", "void", pattern=f"data is 'void'; {MAPPING}"),
    "data as a device": fit("--data", "/dev/zero", pattern=f"data is '/dev/zero'; {MAPPING}"),
    "data from elsewhere": fit("--data", "https://localhost:1/x.yaml", pattern=f"data is 'https:.*'; {MAPPING}"),
    "recursion as an option": fit("--data", "&a [*a]", pattern=rf"data is '&a \[\*a\]'; {MAPPING}"),
    "recursion as a model": fit("--model", "&a {x: *a}", pattern="no class is named '&a'"),
    "model as an option, a mapping": fit(
        "--model={a: 1}", pattern="unknown key 'a' under model; --model.help GPTModule lists the keys"
    ),
    "model as an option, a misspelt key": fit(
        "--model={n_layers: 1}",
        pattern="unknown key 'n_layers' under model; did you mean n_layer.? --model.help GPTModule lists",
    ),
    **{
        f"keep is {str(given)[:20]}": fit(
            *files_source("corpus.jsonl", keep=given), pattern=f"data.sources.keep.*{said}"
        )
        for given, said in (
            (3, "found at the import path '3'"),
            ([1], r"found at the import path '\[1\]'"),
            (True, "found at the import path|must be an import path"),
            ({"a": 1}, r"is {'a': 1} .*--trust"),
            ("", "must be an import path|found at"),
            ("nope", "is 'nope'; it must be an import path"),
            ("a b", "is 'a b'; it must be an import path"),
            ("x" * 400, "is 'x+.*; it must be an import path"),
            ("os.system", "is os.system: a function must be in a module that --trust names"),
            ("nope.nope", "is nope.nope: a function must be in a module that --trust names"),
        )
    },
    "recursion as sources": fit("--data.sources", "&a [*a]", pattern="data.sources is .*; allowed: a list"),
    "prepare: data is a list": prepare("data: [1]", rf"'w.yaml': data is '\[1\]'; {MAPPING}"),
    "prepare: data is empty": prepare("data:", rf"'w.yaml': data is 'null'; {MAPPING}"),
    "prepare: data is text": prepare("data: x", rf"'w.yaml': data is 'x'; {MAPPING}"),
    "prepare: no data": prepare("trainer: {max_steps: 3}", "no config file has a data section"),
    "prepare: unknown key": prepare("dta: {}", "'w.yaml': unknown key 'dta'; did you mean data"),
    "prepare: unknown option": prepare("data: {batchsize: 3}", "unknown key .*batchsize"),
    "prepare: a list": prepare("- data", "'w.yaml' does not contain a mapping"),
    "prepare: recursion": prepare("data: &a {x: *a}", "'w.yaml', line 1 is not valid YAML: the alias"),
    "prepare: sources is a number": prepare("data: {sources: 3}", "data.sources is '3'; allowed: a list"),
    "prepare: nothing": Call(("prepare",), "required and missing: --config"),
    "prepare: no output": Call(("prepare", "--config", "tiny.yaml"), "required and missing: --output"),
    "prepare: missing config": Call(("prepare", "--config", "nope.yaml", "--output", "out"), "'nope.yaml' cannot be"),
    "tokenizer: data is a list": Call(
        ("tokenizer", "--config", "w.yaml", "--vocab_size", "300", "--output", "out"),
        rf"'w.yaml': data is '\[1\]'; {MAPPING}",
        files={"w.yaml": "data: [1]"},
    ),
    "tokenizer: nothing": Call(("tokenizer",), "required and missing: --config"),
}

YAML: dict[str, Call] = {
    "empty file": config("", "'w.yaml' does not contain a mapping"),
    "only a comment": config("# nothing", "'w.yaml' does not contain a mapping"),
    "only a null": config("~", "'w.yaml' does not contain a mapping"),
    "only text": config("hello", "'w.yaml' does not contain a mapping"),
    "only a number": config("3", "'w.yaml' does not contain a mapping"),
    "a list": config("- 3", "'w.yaml' does not contain a mapping"),
    "two documents": config("name: a\n---\nname: b", "'w.yaml', line 2 is not valid YAML"),
    "recursive mapping": config("trainer: &a {x: *a}", r"line 1 is not valid YAML: the alias \*a is inside the value"),
    "recursive list": config("trainer: &a [*a]", r"line 1 is not valid YAML: the alias \*a is inside"),
    "recursion at the top": config("&a\ntrainer: *a", r"the alias \*a is inside"),
    "recursion by two": config("data: &a {x: &b {y: *a, z: *b}}", r"the alias \*a is inside"),
    "recursive merge": config("data: &a\n  <<: *a", r"the alias \*a is inside"),
    "a billion laughs": config(BOMB, "'w.yaml', line 5 is not valid YAML: it holds more than 100,000 values"),
    "laughs of mappings": config(
        "a: &a {x: 1, y: 1}\n"
        + "".join(f"k{n}: &k{n} {{x: *{b}, y: *{b}}}\n" for n, b in ((0, "a"), (1, "k0")))
        + "".join(f"k{n}: &k{n} {{x: *k{n - 1}, y: *k{n - 1}}}\n" for n in range(2, 40)),
        "it holds more than 100,000 values",
    ),
    "undefined alias": config("data: *nope", "line 1 is not valid YAML: found undefined alias"),
    "deep list": config("data: " + "[" * 5000, "line 1 is not valid YAML"),
    "deep mapping": config("data: " + "{a: " * 200 + "}" * 200, "nested more than 100 levels"),
    "deep dashes": config("- " * 5000, "nested more than 100 levels"),
    "deep indentation": config("".join(" " * n + f"k{n}:\n" for n in range(500)), "nested more than 100 levels"),
    "50 MB": config("# " + "x" * 50_000_000, r"'w.yaml' is too large: 50,000,002 bytes \(allowed: at most 4,194,304"),
    "many values": config("data: [" + "1," * 200_000 + "1]", "it holds more than 100,000 values"),
    "5,000 digits": config(f"data: {{batch_size: {DIGITS}}}", "batch_size is '999.*…9+'; allowed: a whole number"),
    "5,000 digits as an option": fit("--data.batch_size", DIGITS, pattern="batch_size is '999.*…9+'; .*whole number"),
    "5,000 digits of a tag": config(f"data: {{batch_size: !!int {DIGITS}}}", "Exceeds the limit .* for integer"),
    "a date": config("data: {batch_size: 2026-01-31}", "batch_size is '2026-01-31'; allowed: a whole number"),
    "a time": config("data: {batch_size: 12:30:45}", "batch_size is '12:30:45'; allowed: a whole number"),
    "control character": config(b"name: a\x07b", "'w.yaml', line 1 is not valid YAML: control characters"),
    "escape sequence": config(b"name: \x1b[31mred", "line 1 is not valid YAML: control characters"),
    "NUL": config(b"name: a\ndata: \x00", "line 2 is not valid YAML: control characters"),
    "only NUL": config(b"\x00" * 100, "is not valid YAML: control characters"),
    "delete": config(b"name: \x7f", "line 1 is not valid YAML: control characters"),
    "tab": config("data:\n\tbatch_size: 3", "line 2 is not valid YAML: found character that cannot start any token"),
    "duplicate key": config("name: a\nname: b", "line 2 is not valid YAML: the key 'name' is given twice"),
    "duplicate section": config("data: {batch_size: 3}\ndata: {}", "line 2 is .*: the key 'data' is given twice"),
    "duplicate key of a section": config("trainer: {max_steps: 1, max_steps: 2}", "'max_steps' is given twice"),
    "duplicate key in quotes": config("data: {seed: 1, 'seed': 2}", "the key 'seed' is given twice"),
    "duplicate key of a source": config("data: {sources: [{a: 1, a: 2}]}", "the key 'a' is given twice"),
    "unclosed bracket": config("data: [1", "line 2 is not valid YAML: did not find expected ',' or ']'"),
    "unclosed quote": config("name: 'x", "is not valid YAML: found unexpected end of stream"),
    "colon in a value": config("name: a: b", "line 1 is not valid YAML: mapping values are not allowed"),
    "wrong indentation": config("data:\n  a: 1\n b: 2", "is not valid YAML: did not find expected key"),
    "a list as a key": config("? [1]\n: 2", "is not valid YAML: found unhashable key"),
    "Python object": config(
        "name: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"
    ),
    "Python name": config("name: !!python/name:os.system", "could not determine a constructor"),
    "binary": config("name: !!binary aGVsbG8=", "could not determine a constructor for the tag"),
    "set": config("name: !!set {a}", "could not determine a constructor for the tag"),
    "timestamp": config("name: !!timestamp 2026-01-31", "could not determine a constructor for the tag"),
    "unknown tag": config("name: !mine x", "could not determine a constructor for the tag '!mine'"),
    "wrong tag": config("name: !!int x", "is not valid YAML: invalid literal for int"),
    "lone surrogate": config('name: "\\ud800"', "is not valid YAML: found invalid Unicode character escape"),
    "Latin-1": config(b"name: caf\xe9", "config file 'w.yaml' cannot be read: it is not UTF-8"),
    "UTF-16": config("name: x".encode("utf-16"), "config file 'w.yaml' cannot be read: it is not UTF-8"),
    "a picture": config(b"\x89PNG\r\n\x1a\n\x00", "config file 'w.yaml' cannot be read: it is not UTF-8"),
    "carriage returns and a wrong section": config(
        b"\xef\xbb\xbfname: x\r\ndata: [1]\r\n", rf"data is '\[1\]'; {MAPPING}"
    ),
    "JSON of the wrong shape": config('{"data": [1]}', rf"data is '\[1\]'; {MAPPING}"),
    "a merge of the wrong shape": config("data: {<<: 3}", "expected a mapping or list of mappings for merging"),
    "study: recursion": study(
        "name: s\nconfig: &a {x: *a}", r"study 's.yaml', line 2 is not valid YAML: the alias \*a"
    ),
    "study: a billion laughs": study(BOMB, "study 's.yaml', line 5 .* more than 100,000 values"),
    "study: duplicate key": study("name: a\nname: b", "the key 'name' is given twice"),
    "study: tab": study("grid:\n\ta: [1]", "study 's.yaml', line 2 is not valid YAML"),
}

TRAINER: dict[str, Call] = {
    f"{name} {value}": fit(f"--trainer.{name}={value}", pattern=rf"trainer\.{name} is .*(must be|allowed)")
    for name, values in {
        "gradient_clip_val": ("-1", "-0.5", ".nan", ".inf", "-.inf", "[1]", "x"),
        "accumulate_grad_batches": ("-1", "0", "1.5", ".inf", "{a: 1}"),
        "max_steps": ("-2", "0", "1e30", "1" + "0" * 30, "three", "true"),
        "max_epochs": ("-2", "0", "1.5"),
        "min_steps": ("-1",),
        "min_epochs": ("-1",),
        "max_time": (
            "nope",
            "1:2:3",
            "-1",
            "00:00:00",
            "00:00:00:00",
            "{hours: -1}",
            "{parsecs: 3}",
            "{days: 1.0e+300}",
            "{}",
        ),
        "limit_train_batches": ("-1", "0", ".nan", "1.5", "-0.5", "0.0"),
        "limit_val_batches": ("-1", "1.5", ".nan", ".inf", "x"),
        "limit_test_batches": ("-1", "2.0"),
        "limit_predict_batches": ("-1", "-.inf"),
        "overfit_batches": ("-1", "1.5", ".nan"),
        "val_check_interval": ("0", "-1", "0.0", "1.5", ".nan", "nope", "{hours: -1}", "00:00:00:00"),
        "check_val_every_n_epoch": ("0", "-1", "0.5"),
        "num_sanity_val_steps": ("-2", "0.5"),
        "log_every_n_steps": ("-1", "0.5"),
        "fast_dev_run": ("-1", "0.5"),
        "reload_dataloaders_every_n_epochs": ("-1",),
        "devices": ("0", "-2", "100000", "x", "[]", "[0,0]", "[-1]", "1.5", "1,1"),
        "num_nodes": ("0", "-1", "1000000000000"),
        "precision": ("bf17", "8", "-1"),
        "gradient_clip_algorithm": ("median", "[1]"),
    }.items()
    for value in values
} | {
    "clipping in a file": config("trainer: {gradient_clip_val: -1}", "trainer.gradient_clip_val is -1; it must be"),
    "accumulation in a file": config("trainer: {accumulate_grad_batches: 0}", "accumulate_grad_batches is 0; it must"),
    "clipping as a section": fit("--trainer", "{gradient_clip_val: -1}", pattern="gradient_clip_val is -1; it must be"),
    "clipping in validate": Call(
        ("validate", "--config", "tiny.yaml", "--trainer.gradient_clip_val", "-1"),
        "gradient_clip_val is -1; it must be",
    ),
    **{
        f"accelerator {name}": fit(
            *("--trainer.accelerator", name),
            pattern=f"trainer.accelerator is '{name}'{lacks}; allowed here: auto, cpu$",
            env=NO_GPU,
        )
        for lacks, names in (
            (", but torch finds no GPU on this machine", ("gpu", "cuda")),
            ("", ("tpu", "abacus")),
        )
        for name in names
    },
    "accelerator of validate": Call(
        ("validate", "--config", "tiny.yaml", "--ckpt_path", "last.ckpt", "--trainer.accelerator", "cuda"),
        "trainer.accelerator is 'cuda', but torch finds no GPU on this machine; allowed here: auto, cpu$",
        env=NO_GPU,
    ),
    "unknown strategy": fit("--trainer.strategy", "nope", pattern="trainer: .*nope"),
    "unknown strategy of a long name": fit("--trainer.strategy", "x" * 400, pattern="trainer: .*strategy.*xxx"),
    **{
        f"option that {name} does not have": fit(
            "--trainer.logger",
            json.dumps({"class_path": name, "init_args": {"save_dir": "logs"}, "dict_kwargs": {"nope": 3}}),
            pattern=f"trainer.logger: {name} has no option 'nope'",
        )
        for name in ("CSVLogger", "TensorBoardLogger")
    },
    "option that one of two loggers does not have": fit(
        "--trainer.logger",
        "[{class_path: CSVLogger, init_args: {save_dir: x}}, "
        "{class_path: TensorBoardLogger, init_args: {save_dir: x}, dict_kwargs: {nope: 3}}]",
        pattern="trainer.logger: TensorBoardLogger has no option 'nope'",
    ),
    "stopping at what is not measured": fit(
        "--trainer.callbacks",
        "{class_path: EarlyStopping, init_args: {monitor: nope}}",
        pattern="EarlyStopping: monitor is 'nope'; the validation measures val/loss",
    ),
    "unknown profiler": fit("--trainer.profiler", "nope", pattern="trainer: .*profiler"),
    "unknown determinism": fit("--trainer.deterministic", "perhaps", pattern="deterministic is 'perhaps'; allowed"),
    "a cell of a study": study(
        "name: s\nbase: [base.yaml]\ngrid: {trainer.gradient_clip_val: [1, -1]}",
        r"cell 1, gradient_clip_val=-1,seed=0: trainer.gradient_clip_val is -1; it must be a finite number",
    ),
}

STUDY = "name: s\nbase: [base.yaml]\n"

STUDIES: dict[str, Call] = {
    "nothing": Call(("study",), "required and missing: --config"),
    "an empty name": Call(("study", "--config", ""), "study '.' cannot be read: Is a directory"),
    "a missing file": Call(("study", "--config", "nope.yaml"), "study 'nope.yaml' cannot be read: No such file"),
    "a folder": Call(("study", "--config", "void"), "study 'void' cannot be read: Is a directory"),
    "a config": Call(("study", "--config", "tiny.yaml"), "study 'tiny.yaml': unknown key"),
    "only --slurm": Call(("study", "--slurm"), "required and missing: --config"),
    "no mapping": study("- 3", "study 's.yaml' does not contain a mapping"),
    "empty": study("", "study 's.yaml' does not contain a mapping"),
    **{
        f"{key} is {value}": study(f"{'' if key == 'name' else 'name: s'}\n{key}: {value}", shown)
        for key, value, shown in (
            ("name", "[1]", r"name is \[1\]"),
            ("name", "3", "name is 3"),
            ("name", "''", "name is ''"),
            ("name", "a/b", "name is 'a/b'"),
            ("name", "..", r"name is '\.\.'"),
            ("name", "'[bold]x[/nope]'", r"name is '\[bold\]x\[/nope\]'"),
            ("name", "x" * 300, "name is 'x+…?x+'; it may"),
            ("base", "3", "base is 3; it must be a list"),
            ("base", "x.yaml", "base is 'x.yaml'; it must be a list"),
            ("base", "[3]", "base holds 3; it must be a list of paths"),
            ("base", "[[a]]", r"base holds \['a'\]"),
            ("base", "[~]", "base holds None"),
            ("base", "[nope.yaml]", "base 'nope.yaml' cannot be read: No such file"),
            ("base", "[void]", "base 'void' cannot be read: Is a directory"),
            ("base", "[pipe]", "base 'pipe' cannot be read: it is not a regular file"),
            ("base", "[/dev/zero]", "base '/dev/zero' cannot be read: it is not a regular file"),
            ("base", f"[{TOO_LONG}]", "cannot be read: File name too long"),
            ("base", "[list.yaml]", "base 'list.yaml' does not contain a mapping"),
            ("base", "[bad.yaml]", "base 'bad.yaml', line 2 is not valid YAML"),
            ("base", '["a\\0b"]', "cannot be read: embedded null byte"),
            ("config", "[1]", r"config is \[1\]; it must be a mapping"),
            ("config", "3", "config is 3; it must be a mapping"),
            ("config", "[]", r"config is \[\]; it must be a mapping"),
            ("config", "false", "config is False; it must be a mapping"),
            ("config", "{1: 2}", "config has the key 1; its keys must be text"),
            ("grid", "[1]", r"grid is \[1\]; it must be a mapping"),
            ("grid", "0", "grid is 0; it must be a mapping"),
            ("grid", "{a: 3}", "grid: a is 3; it must be a list"),
            ("grid", "{a: []}", "grid: a is an empty axis"),
            ("grid", "{a: {}}", "grid: a is {}; it must be a list"),
            ("grid", "{a: [[1]]}", r"grid: a holds \[1\]; an axis holds numbers and words"),
            ("grid", "{a: [1, 1]}", "grid: a holds a value twice"),
            ("grid", "{1: [1]}", "grid has the key 1; its keys must be text"),
            ("grid", "{seed_everything: [1]}", "list the seeds under seeds"),
            (
                "grid",
                "{" + ",".join(f"k{n}: [0,1,2,3,4,5,6,7,8,9]" for n in range(12)) + "}",
                "1,000,000,000,000 cells",
            ),
            ("variants", "[1]", r"variants is \[1\]; it must be a mapping"),
            ("variants", "{a: 3}", "variant a is 3; it must be a mapping"),
            ("variants", "{a: {1: 2}}", "variant a has the key 1; its keys must be text"),
            ("seeds", "3", "seeds is 3; it must be a list"),
            ("seeds", "[]", "seeds is empty"),
            ("seeds", "[-1]", r"seeds is \[-1\]; each must be a whole number"),
            ("seeds", "[a]", "seeds is .*; each must be a whole number"),
            ("seeds", "[1, 1]", "seeds holds a seed twice"),
            ("seeds", "[1.5]", "seeds is .*; each must be a whole number"),
            ("measure", "3", "measure is 3; it must be a list"),
            ("measure", "[3]", "unknown measure '3'"),
            ("measure", "[[1]]", "measure"),
            ("measure", "[val/los]", "unknown measure 'val/los' .did you mean val/loss"),
            ("report", "3", "report is 3; it must be a list"),
            ("report", "[3]", "report holds 3"),
            ("report", "[{table: [1]}]", "report holds .*a section is a name"),
            ("report", "[tabel]", "unknown section 'tabel'"),
            ("report", "[{fit: {x: n_layer}}]", "fit needs the option 'y'"),
            ("reference", "3", "reference is 3; it must be a mapping"),
            ("reference", "{values: 3}", "reference: values is 3; it must be a mapping"),
            ("reference", "{axis: a}", "axis is 'a'; the axes are"),
            ("reference", "{axis: a, values: {val/loss: {1: x}}}", "it must give a number"),
            ("presets", "3", "presets is 3; it must be a mapping"),
            ("presets", "{cpu: {}}", "has presets: choose one with --preset"),
            ("question", "[1]", "question is .*; it must be text"),
            ("gird", "{}", "unknown key 'gird'; did you mean grid"),
            ("1", "2", "unknown key 1"),
        )
    },
    "recursive grid": study("name: s\ngrid: {a: &a [*a]}", r"study 's.yaml', line 2 is not valid YAML: the alias \*a"),
    "preset that is none": study(
        "name: s\npresets: {cpu: 3}", "preset cpu is 3; it must be a mapping", "--preset", "cpu"
    ),
    "preset of a wrong key": study("name: s\npresets: {cpu: {gird: 1}}", "unknown key 'gird'", "--preset", "cpu"),
    "preset where there is none": study("name: s", "has no preset 'cpu'; it has none", "--preset", "cpu"),
    "other preset": study("name: s\npresets: {cpu: {}}", "has no preset 'gpu'; it has cpu", "--preset", "gpu"),
    "no jobs": study(STUDY, "jobs is 0; it must be a whole number from 1 to 1,024", "--jobs", "0"),
    "negative jobs": study(STUDY, "jobs is -1; it must be a whole number from 1 to 1,024", "--jobs", "-1"),
    "no such cell": study(STUDY, "cell is 5; this study has 1", "--cell", "5"),
    "negative cell": study(STUDY, "cell is -1; it must be a whole number from 0", "--cell", "-1"),
    "cell and slurm": study(STUDY, "cannot be combined", "--cell", "0", "--slurm"),
    "report of nothing": study(STUDY, "no cell of s is finished", "--report_only", status=1),
    "section of a cell": study(f"{STUDY}config: {{data: [1]}}", rf"cell 0, seed=0: data is '\[1\]'; {MAPPING}"),
}

PATHS: dict[str, Call] = {
    **{
        f"config {path[:20]}": Call(("fit", "--config", path), f"config file .*cannot be read: {reason}")
        for path, reason in (
            ("nope.yaml", "No such file"),
            ("", "Is a directory"),
            ("void", "Is a directory"),
            ("pipe", "it is not a regular file"),
            ("/dev/zero", "it is not a regular file"),
            ("/dev/stdin", "it is not a regular file"),
            ("/dev/full", "it is not a regular file"),
            (TOO_LONG, "File name too long"),
            ("corpus.jsonl/x", "Not a directory"),
            ("loop", "Too many levels of symbolic links"),
            ("/proc/self/mem", "Input/output error"),
            ("caf\udce9.yaml", "No such file"),
            ("[bold]x[/nope]", "No such file"),
        )
    },
    "config without a value": Call(("fit", "--config"), "config"),
    "config that is a checkpoint": Call(("fit", "--config", "last.ckpt"), "cannot be read: it is not UTF-8"),
    **{
        f"checkpoint {path[:20]}": Call(("generate", "--checkpoint", path), f"checkpoint .*{reason}")
        for path, reason in (
            ("nope.ckpt", "does not exist"),
            ("", "is a folder; name a file"),
            ("void", "is a folder; name a file"),
            ("pipe", "is not a regular file"),
            ("/dev/zero", "is not a regular file"),
            ("corpus.jsonl/x", "does not exist|Not a directory"),
            ("loop", "does not exist|symbolic links"),
            ("/proc/self/mem", "cannot be read"),
            ("tiny.yaml", "is not a checkpoint"),
            ("caf\udce9.ckpt", "does not exist"),
        )
    },
    **{
        f"{command} of {name}.ckpt": Call((command, option, f"{name}.ckpt"), f"checkpoint '{name}.ckpt'.* {said}")
        for name, said in (
            ("misfit", "has different weights from the model that it describes"),
            ("unknown", "does not describe a model of this version"),
            ("list", "does not describe a model of this version"),
            ("empty", "has model None, which is not registered"),
        )
        for command, option in (("generate", "--checkpoint"), ("inspect", "--checkpoint"))
    },
    **{
        f"resume from {name}.ckpt": fit("--ckpt_path", f"{name}.ckpt", pattern=f"checkpoint '{name}.ckpt'.* {said}")
        for name, said in (
            ("misfit", "has a different architecture: n_layer is 3 there and 2 here"),
            ("unknown", "does not describe a model of this version"),
            ("list", "does not describe a model of this version"),
        )
    },
    "resume from a folder": fit("--ckpt_path", "void", pattern="checkpoint 'void' is a folder; name a file"),
    "resume from a pipe": fit("--ckpt_path", "pipe", pattern="checkpoint 'pipe' is not a regular file"),
    "resume from a long name": fit("--ckpt_path", TOO_LONG, pattern="File name too long|does not exist"),
    "resume from a path of 400 characters": fit("--ckpt_path", "x" * 400, pattern="cannot be read: File name too long"),
    "resume from a path too long": fit("--ckpt_path", "x/" * 3000, pattern="cannot be read: File name too long"),
    "resume from a config": fit("--ckpt_path", "tiny.yaml", pattern="'tiny.yaml' .*is not a checkpoint"),
    **{
        f"data {str(path)[-20:]}": fit(*files_source(path), pattern=pattern, status=status)
        for path, pattern, status in (
            ("nope.txt", "data file 'nope.txt' does not exist", 2),
            ("void", "data folder 'void' contains no supported file", 2),
            (TOO_LONG + ".txt", "File name too long|does not exist", 2),
            ("corpus.jsonl/x", "Not a directory|does not exist", 2),
            ("loop", "symbolic links|does not exist", 2),
            ("pipe.txt", "pipe.txt.*(not a regular file|does not exist|not a file)", 2),
            ("zero.txt", "zero.txt.*(not a regular file|does not exist|not a file)", 2),
            ("a\0b.txt", "does not exist", 2),
            ("latin.txt", "invalid UTF-8", 1),
            ([], "was given no paths", 2),
            ([[]], "paths", 2),
            (3, "paths", 2),
        )
    },
    "tokenizer file missing": fit("--data.tokenizer", "nope.tiktoken", pattern="'nope.tiktoken' cannot be read"),
    "tokenizer file a folder": fit("--data.tokenizer", "void", pattern="'void' cannot be read"),
    "tokenizer file a pipe": fit("--data.tokenizer", "pipe", pattern="'pipe' .*(regular|cannot be read)"),
    "tokenizer file a device": fit("--data.tokenizer", "/dev/zero", pattern="'/dev/zero' .*(regular|cannot be read)"),
    "tokenizer file of a long name": fit("--data.tokenizer", TOO_LONG, pattern="e too long"),
    "prepared that is missing": fit("--data.prepared", "nope", pattern="nope"),
    "prepared that is a file": fit("--data.prepared", "tiny.yaml", pattern="tiny.yaml"),
    "prepared that is empty": fit("--data.prepared", "void", pattern="void"),
    "prepared of a long name": fit("--data.prepared", TOO_LONG, pattern="File name too long|x{20}"),
    **{
        f"inspect to {path[:20]}": Call(("inspect", "--checkpoint", "last.ckpt", "--output", path), reason)
        for path, reason in (
            ("corpus.jsonl", "'corpus.jsonl' cannot be used as a folder: File exists"),
            ("corpus.jsonl/x", "cannot be used as a folder: Not a directory"),
            (TOO_LONG, "cannot be used as a folder: File name too long"),
            ("/proc/nope", "cannot be used as a folder: No such file"),
            ("loop", "cannot be used as a folder: "),
        )
    },
    **{
        f"prepare to {path[:20]}": Call(("prepare", "--config", "tiny.yaml", "--output", path), reason, status)
        for path, reason, status in (
            ("void", "output 'void' exists", 2),
            ("corpus.jsonl", "output 'corpus.jsonl' exists", 2),
            ("corpus.jsonl/x", "Not a directory", 2),
            (TOO_LONG, "File name too long", 2),
            ("/proc/nope", "/proc/nope.*No such file", 2),
            ("/dev/null/x", "/dev/null/x.*Not a directory", 2),
        )
    },
    **{
        f"tokenizer to {path[:20]}": tokenizer("--vocab_size", "300", "--output", path, pattern=reason)
        for path, reason in (
            ("corpus.jsonl", "'corpus.jsonl' cannot be used as a folder: File exists"),
            ("corpus.jsonl/x", "cannot be used as a folder: Not a directory"),
            (TOO_LONG, "File name too long"),
            ("/proc/nope", "'/proc/nope' cannot be used as a folder: No such file"),
        )
    },
    "bench to a file": Call(("bench", "--rows", "nope", "--output", "corpus.jsonl"), "nope"),
    "bench of no folder": Call(
        ("bench", "--peer_dir", "corpus.jsonl"), "peer_dir is 'corpus.jsonl', which is not a folder"
    ),
    "bench workload": Call(("bench", "--workload", "[1]"), rf"workload is '\[1\]'; {MAPPING}"),
    "plan of no device": Call(("plan", "--config", "tiny.yaml", "--device", "h100"), "did you mean H100-PCIe"),
    "plan of wrong devices": Call(
        ("plan", "--config", "tiny.yaml", "--devices_file", "list.yaml"), "devices file 'list.yaml'"
    ),
    "run name of a long name": fit("--name", TOO_LONG, pattern="name|long"),
    "trusted file missing": fit("--trust", "nope.py", pattern="--trust nope.py: there is no such .py file"),
    "trusted nothing": fit("--trust", pattern="--trust is ''"),
}

NAMES: dict[str, Call] = {
    "unknown command": Call(("[bold]x[/nope]",), r"unknown command '\[bold\]x\[/nope\]'"),
    "unknown command of no UTF-8": Call(("caf\udce9",), r"unknown command 'caf\\udce9'"),
    "unknown command, long": Call(("x" * 10_000,), "unknown command 'x+…"),
    "unknown command with escapes": Call(("\x1b[31mred",), r"unknown command '\\x1b\[31mred'"),
    "unknown option in markup": fit("--[bold]x[/nope]", "1", pattern=r"unknown option --\[bold\]x\[/nope\]"),
    "unknown option, long": fit("--" + "x" * 10_000, "1", pattern="unknown option --x+…"),
    "unknown option of no UTF-8": fit("--caf\udce9", "1", pattern="unknown option --caf"),
    "stray argument of no UTF-8": fit("caf\udce9", pattern="unexpected argument"),
    "stray argument with a line": fit("a\nerror: b", pattern="unexpected argument"),
    "value of many lines": fit("--data.batch_size", "a\n" * 500, pattern="batch_size is .*allowed: a whole number"),
    "source in markup": fit(*files_source("nope[/nope].txt", name="[bold]x[/nope]"), pattern="does not exist"),
    "class in markup": fit(*sources({"class_path": "[bold]x[/nope]"}), pattern=r"no class is named|bold"),
    "ids that are none": Call(
        ("generate", "--checkpoint", "last.ckpt", "--ids", "[bold]"), "ids is .bold.; allowed: a whole number"
    ),
    "id of 5,000 digits": Call(("generate", "--checkpoint", "last.ckpt", "--ids", f"[{DIGITS}]"), "ids"),
    "ids of a recursion": Call(("generate", "--checkpoint", "last.ckpt", "--ids", "&a [*a]"), "ids is"),
    "inspect ids of a recursion": Call(("inspect", "--checkpoint", "last.ckpt", "--ids", "&a [*a]"), "ids is"),
}

LAYERS = r"checkpoint 'layers\.ckpt': n_layer is 300000; it must be a whole number from 1 to 10,000"
MEMORY = 8 << 30

SIZES: dict[str, Call] = {
    **{
        f"{option} {value}": fit(f"--{option}", value, pattern=f"{option.rpartition('.')[2]} is {value}; it must be")
        for option, value in (
            ("model.dim", "2000000000"),
            ("model.n_layer", "300000"),
            ("model.block_size", "1000000000000"),
            ("data.batch_size", "1000000000"),
            ("data.num_workers", "100000"),
            ("seed_everything", "-1"),
            ("seed_everything", "4294967296"),
        )
    },
    "block size of the data": fit("--data.block_size", "1000000000000", pattern="must be given via .*block_size"),
    "a batch of more rows than there are": fit("--data.batch_size", "1048576", pattern="the corpus has 556 .* rows"),
    "a block longer than the corpus": fit("--model.block_size", "16777216", pattern="less than one block"),
    "vocabulary": tokenizer(
        "--vocab_size", "4294967298", "--output", "out", pattern="vocab_size is 4294967298; it must be"
    ),
    "jobs of a study": study(STUDY, "jobs is 100000; it must be a whole number from 1 to 1,024", "--jobs", "100000"),
    "jobs of a corpus": Call(
        ("prepare", "--config", "tiny.yaml", "--output", "out", "--jobs", "100000"), "jobs is 100000; it must be"
    ),
    "new tokens": Call(
        ("generate", "--checkpoint", "last.ckpt", "--max_new_tokens", "1000000000000000"), "max_new_tokens is 10+; it"
    ),
    "memory for a width": fit(
        "--model.dim",
        "1048576",
        pattern="not enough memory: an array of 13,194,139,533,312 bytes was needed",
        status=1,
        limits={"AS": MEMORY},
    ),
    "memory for layers": fit(
        "--model.dim",
        "16384",
        "--model.n_layer",
        "100",
        pattern="not enough memory: an array of [0-9,]+ bytes was needed",
        status=1,
        limits={"AS": MEMORY},
    ),
    "memory for anything": Call(
        ("generate", "--checkpoint", "last.ckpt"), "not enough memory", 1, limits={"AS": 1 << 30}
    ),
    "layers in a checkpoint": Call(("generate", "--checkpoint", "layers.ckpt"), LAYERS),
    "layers in a draft": Call(("generate", "--checkpoint", "last.ckpt", "--draft", "layers.ckpt"), LAYERS),
    "layers in an inspected checkpoint": Call(("inspect", "--checkpoint", "layers.ckpt"), LAYERS),
    "layers in a validated checkpoint": Call(
        ("validate", "--config", "tiny.yaml", "--ckpt_path", "layers.ckpt"), LAYERS
    ),
    "layers in a resumed checkpoint": fit("--ckpt_path", "layers.ckpt", pattern=LAYERS),
}

DELETED = "the working folder has been deleted; change to another one"
DENIED = "Permission denied"

PLACES: dict[str, Call] = {
    **{
        f"{' '.join(args)[:40]} where it is deleted": Call(args, DELETED, 1, changes=("deleted=",))
        for args in (
            FIT,
            ("fit", "--config", "/dev/null", "--trust", "nope"),
            ("fit", "--trust", "nope.py"),
            ("generate", "--checkpoint", "last.ckpt"),
            ("tokenizer", "--config", "tiny.yaml"),
            ("study", "--config", "s.yaml"),
        )
    },
    **{
        f"{args[0]}: {pattern}": Call(args, pattern, status, changes=("privileges=none",))
        for args, pattern, status in (
            (("fit", "--config", "secret.yaml"), f"config file 'secret.yaml' cannot be read: {DENIED}", 2),
            (("fit", "--config", "closed/x.yaml"), f"config file 'closed/x.yaml' cannot be read: {DENIED}", 2),
            (("study", "--config", "secret.yaml"), f"study 'secret.yaml' cannot be read: {DENIED}", 2),
            (("generate", "--checkpoint", "secret.ckpt"), f"'secret.ckpt' cannot be read: {DENIED}", 2),
            (("generate", "--checkpoint", "closed/last.ckpt"), f"'closed/last.ckpt' cannot be read: {DENIED}", 2),
            ((*FIT, "--ckpt_path", "closed/last.ckpt"), f"'closed/last.ckpt' cannot be read: {DENIED}", 2),
            ((*FIT, *files_source("secret.txt")), f"'?secret.txt.*{DENIED}", 1),
            ((*FIT, *files_source("closed/x.txt")), f"closed/x.txt.*{DENIED}", 1),
            ((*FIT, *files_source("closed")), f"data folder 'closed' cannot be read: {DENIED}", 2),
            ((*FIT, *files_source("half")), f"data folder 'half/closed' cannot be read: {DENIED}", 2),
            ((*FIT, "--data.tokenizer", "secret.tiktoken"), f"'secret.tiktoken' cannot be read: {DENIED}", 2),
            ((*FIT, "--data.prepared", "closed"), f"closed.*{DENIED}", 2),
            ((*FIT, "--trust", "secret.py"), f"--trust secret.py: .*{DENIED}", 2),
            ((*FIT, "--trainer.default_root_dir", "locked"), f"'locked/runs'.*{DENIED}", 1),
            (("inspect", "--checkpoint", "last.ckpt", "--output", "locked/x"), f"'locked/x' cannot be .*: {DENIED}", 2),
            (("prepare", "--config", "tiny.yaml", "--output", "locked/x"), f"locked/x.*{DENIED}", 2),
            (
                ("tokenizer", "--config", "tiny.yaml", "--vocab_size", "300", "--output", "locked/x"),
                f"'locked/x' cannot be used as a folder: {DENIED}",
                2,
            ),
        )
    },
}

OUTPUTS: dict[str, Call] = {
    "help to a full disk": Call(("--help",), "No space left on device", 1, out="/dev/full"),
    "version to a full disk": Call(("--version",), "No space left on device", 1, out="/dev/full"),
    "text to a full disk": Call(
        ("generate", "--checkpoint", "last.ckpt", "--max_new_tokens", "3"),
        "No space left on device",
        1,
        out="/dev/full",
    ),
    "text beyond ASCII": Call(
        ("generate", "--checkpoint", "last.ckpt", "--max_new_tokens", "3", "--prompt", "é"),
        "output's encoding, ascii, has no .*PYTHONIOENCODING",
        1,
        env={"PYTHONIOENCODING": "ascii"},
    ),
    "path beyond ASCII": Call(
        ("generate", "--checkpoint", "é.ckpt"), "checkpoint 'é.ckpt' does not exist", env={"LC_ALL": "C"}
    ),
    "few files for a study": study(STUDY, "Too many open files; raise the limit", limits={"NOFILE": 12}, status=1),
    "few files to generate": Call(
        ("generate", "--checkpoint", "last.ckpt"), "'last.ckpt' .*Too many open files; raise", 1, limits={"NOFILE": 4}
    ),
    "no further thread": Call(
        ("prepare", "--config", "tiny.yaml", *files_source("corpus.jsonl"), "--output", "public/out"),
        "the system allows no further thread: see ulimit -u",
        1,
        limits={"NPROC": 1},
        changes=("user=4321",),
    ),
    "small files": Call(
        ("inspect", "--checkpoint", "last.ckpt", "--output", "out"), "File too large", 1, limits={"FSIZE": 1000}
    ),
    "small files of a vocabulary": tokenizer(
        "--vocab_size", "400", "--output", "out", pattern="out/.*File too large", status=1, limits={"FSIZE": 1000}
    ),
}

GROUPS = {
    "shapes": SHAPES,
    "YAML": YAML,
    "trainer": TRAINER,
    "studies": STUDIES,
    "paths": PATHS,
    "names": NAMES,
    "sizes": SIZES,
    "places": PLACES,
    "outputs": OUTPUTS,
}
