"""Imports point one way: cli → commands → benchmarks, training, analysis, inference → data, models."""

import ast
import fnmatch
import graphlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, BENCHMARKS = ROOT / "lightning_gpt", ROOT / "benchmarks"

BELOW = {"models", "loading", "data", "analysis", "inference", "checkpoint", "planning", "console", "options", "errors"}

# the parts of lightning_gpt, and benchmarks, that each part may import besides itself
MAY_IMPORT = {
    "errors": set(),
    "options": {"errors"},
    "models": {"options", "errors"},
    "console": set(),
    "fewer_imports": set(),
    "hardware": set(),
    "waiting": {"hardware"},
    "kept_memory": set(),
    "json_text": set(),
    "system_error": {"errors"},
    "whole_file": {"system_error", "errors"},
    "safe_yaml": {"system_error", "errors"},
    "trust": {"errors"},
    "launch": set(),
    "lessons": set(),
    "stopping": {"launch", "errors"},
    "cluster": {"errors"},
    "data": {
        *("models", "console", "hardware", "whole_file", "options", "stopping", "json_text", "system_error", "trust"),
        *("cluster", "checkpoint_folder", "errors"),
    },
    "checkpoint_file": {"whole_file", "system_error", "errors"},
    "named_tensors": set(),
    "background": set(),
    "saving": {"background"},
    "checkpoint_folder": {"checkpoint_file", "whole_file", "errors"},
    "checkpoint_series": {"whole_file", "system_error", "errors"},
    "checkpoint_name": {"checkpoint_series", "errors"},
    "consolidated": {"checkpoint_folder", "whole_file", "errors"},
    "checkpoint": {
        *("models", "data", "checkpoint_folder", "checkpoint_name", "checkpoint_series", "named_tensors"),
        *("whole_file", "console", "errors"),
    },
    "loading": {"models", "checkpoint", "interop", "errors"},
    "version": {"__init__"},
    "perplexity": set(),
    "inference": {"models", "data", "options", "errors"},
    "evaluation": {"models", "data", "inference", "safe_yaml", "options", "perplexity", "errors"},
    "interop": {
        *("models", "data", "checkpoint", "checkpoint_file", "checkpoint_name", "named_tensors", "whole_file"),
        *("options", "errors"),
    },
    "serving": {"models", "data", "inference", "console", "stopping", "system_error", "errors"},
    "analysis": {"models", "data", "json_text", "errors"},
    "exploring": {"models", "data", "analysis", "inference", "serving", "json_text", "errors"},
    "training": {
        *BELOW,
        "parallel",
        "background",
        "perplexity",
        "checkpoint_file",
        "checkpoint_folder",
        "checkpoint_name",
        "checkpoint_series",
        "saving",
        "hardware",
        "whole_file",
        "json_text",
        "stopping",
        "trust",
        "waiting",
        "kept_memory",
    },
    "planning": {"models", "parallel", "data", "options", "safe_yaml", "errors"},
    "parallel": {"models", "checkpoint_folder", "named_tensors", "saving", "whole_file", "options", "errors"},
    "studies": {
        *BELOW - {"planning"},
        "training",
        "hardware",
        "whole_file",
        "json_text",
        "safe_yaml",
        "stopping",
        "trust",
        "version",
        "cluster",
    },
    "benchmarks": {
        *BELOW,
        "parallel",
        "background",
        "checkpoint_folder",
        "training",
        "hardware",
        "json_text",
        "kept_memory",
        "waiting",
        "whole_file",
    },
    "doctor": {"training", "hardware", "whole_file", "errors", "__init__"},
    "commands": {
        "json_text",
        *BELOW,
        "cluster",
        "parallel",
        "training",
        "launch",
        "whole_file",
        "safe_yaml",
        "stopping",
        "studies",
        "doctor",
        "evaluation",
        "interop",
        "serving",
        "exploring",
        "trust",
        "consolidated",
        "checkpoint_folder",
        "checkpoint_name",
        "checkpoint_series",
        "waiting",
    },
    "cli": {"commands", "errors", "fewer_imports", "hardware", "system_error", "trust", "version"},
    "__init__": {"models", "data", "training", "checkpoint", "loading", "errors"},
    "__main__": {"cli", "errors", "stopping", "trust"},
}
# the rooms of lightning_gpt/models, from the ground up: a file may import files of its own room and of rooms on lower
# floors; rooms on one floor do not import each other
WRAPPERS = ("checkpointing", "chosen_tokens", "layer_drop", "loop", "shared", "token_routing")
GENERATION = (
    *("decoding.sampling", "decoding.generating", "decoding.captured", "decoding.samplers", "decoding.beam_search"),
    *("decoding.rows", "decoding.text"),
    *("decoding.rules", "decoding.rules.*"),
)
FLOORS: list[dict[str, tuple[str, ...]]] = [
    {
        "ground": (
            "registry",
            "one_vector",
            "layer",
            "record",
            "kv_cache",
            "row_cache",
            "part_losses",
            "evaluating",
            "graph",
            "double",
            "rounding",
        )
    },
    {
        "positions": ("positions", "positions.*"),
        "head": (
            "adjusted_head",
            "scaled_head",
            "head",
            "chunked_softmax",
            "tokens_first",
            "one_pass",
            "softmax_kernel",
        ),
    },
    {"context": ("context",)},
    {"norms": ("norms",), "convolution": ("short_convolution",)},
    {"attention": ("attention", "attention.*")},
    {"view": ("view",)},
    {"ffn": ("ffn", "ffn.*")},
    {
        "block": (
            *("block", "residual", "depth_factors", "spherical", "hyper_connections", "constrained_connections"),
            *("attention_residuals", "diversity", "canon"),
        )
    },
    {"wrappers": ("wrappers", *(f"wrappers.{name}" for name in WRAPPERS))},
    {"config": ("config",)},
    {"layers": ("wrappers.layers",), "generation": GENERATION},
    {"base": ("base",)},
    {"gpt": ("gpt",), "single_head": ("single_head",), "materialise": ("materialise",), "adapters": ("adapters",)},
    {
        "memory": ("memory", "memory.*"),
        "decoding": ("decoding", "decoding.early_exit", "decoding.int8", "decoding.speculative"),
        "from_trained": ("from_trained", "from_trained.*"),
    },
    {"models": ("",)},
]
THE_BENCH_COMMAND = PACKAGE / "commands" / "bench.py"  # the only file of lightning_gpt that may import benchmarks
FILES = sorted([*PACKAGE.rglob("*.py"), *BENCHMARKS.rglob("*.py")])


def part_of(file: Path) -> str:
    if file.is_relative_to(BENCHMARKS):
        return "benchmarks"
    relative = file.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(file: Path) -> set[str]:
    """Every module that a file names in an import, also inside functions and for types alone."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where they point"
            modules.add(node.module or "")
    return modules


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    part = part_of(file)
    for module in imported_modules(file):
        if module == "lightning_gpt":
            target = "__init__"
        elif module.startswith("lightning_gpt."):
            target = module.split(".")[1]
        elif module.split(".")[0] == "benchmarks":
            target = "benchmarks"
        else:
            continue
        allowed = {part, *MAY_IMPORT[part], *(["benchmarks"] if file == THE_BENCH_COMMAND else [])}
        assert target in allowed, f"{file} imports {module}"


MODELS = {
    ".".join(file.relative_to(PACKAGE / "models").with_suffix("").parts).removesuffix("__init__").strip("."): file
    for file in sorted((PACKAGE / "models").rglob("*.py"))
}
"""The files of lightning_gpt/models by the name that they are imported by, below it."""


def imported_models(name: str) -> set[str]:
    """The files of lightning_gpt/models that one of them imports, apart from what only type checkers read."""
    tree = ast.parse(MODELS[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                found.add(within if within.removeprefix("lightning_gpt.models.") in MODELS else str(node.module))
    prefix = "lightning_gpt.models"
    return {module.removeprefix(prefix).removeprefix(".") for module in found if f"{module}.".startswith(f"{prefix}.")}


def room_of(name: str) -> tuple[int, str]:
    """The floor and the room of a file of lightning_gpt/models."""
    rooms = [
        (floor, room)
        for floor, rooms_of_floor in enumerate(FLOORS)
        for room, patterns in rooms_of_floor.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    assert len(rooms) == 1, f"models/{name} is in the rooms {rooms}; it must be in one"
    return rooms[0]


@pytest.mark.parametrize("name", MODELS)
def test_rooms_of_the_models_import_downwards_only(name: str) -> None:
    floor, room = room_of(name)
    for other in imported_models(name):
        other_floor, other_room = room_of(other)
        assert other_floor < floor or other_room == room, f"{name} ({room}) imports {other} ({other_room})"


def test_no_two_files_of_the_models_import_each_other_in_a_circle() -> None:
    assert imported_models("gpt") >= {"block", "head"}, "imports must be found to show anything"
    order = list(graphlib.TopologicalSorter({name: imported_models(name) for name in MODELS}).static_order())
    assert set(order) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_pure_torch(name: str) -> None:
    allowed = {"torch", "lightning_gpt", "math", "re", "dataclasses", "typing", "abc", "collections", "contextlib"}
    allowed |= {
        "codecs",
        "itertools",
        "difflib",
        "fnmatch",
        "functools",
        "inspect",
        "copy",
        "importlib",
        "pkgutil",
        "threading",
        "__future__",
    }
    allowed |= {"triton"} if name == "softmax_kernel" else set()
    file = MODELS[name]
    assert {module.split(".")[0] for module in imported_modules(file)} <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_too_long_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


def test_every_public_thing_has_a_docstring() -> None:
    """Functions, classes and methods; what overrides a method is described where the method is first."""
    trees = {file: ast.parse(file.read_text()) for file in FILES}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [node for node in ast.walk(ast.Module(classes, [])) if isinstance(node, ast.FunctionDef)]
    described = {method.name for method in methods if ast.get_docstring(method)}
    plain = ("n_layer", "n_head")
    of_lightning_or_torch = ("on_", "setup", "teardown", "disable", "enable", "forward", "backward", "should_update")
    missing = []
    for file, tree in trees.items():
        assert ast.get_docstring(tree) or not tree.body, f"{file} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    missing.append(f"{file.name}: {node.name}")
                members = node.body if isinstance(node, ast.ClassDef) else []
                missing += [
                    f"{file.name}: {node.name}.{member.name}"
                    for member in members
                    if isinstance(member, ast.FunctionDef)
                    and not member.name.startswith(("_", *plain, *of_lightning_or_torch))
                    and not ast.get_docstring(member)
                    and member.name not in described
                ]
    # Watch is internal to recording; its three questions are named for what they answer
    assert [name for name in missing if "Watch.record" not in name and "Watch.edit" not in name] == []


def test_a_wheel_has_every_package() -> None:
    """Also benchmarks, without which an installed ``lightning-gpt bench`` cannot start."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in FILES}
    assert {"lightning_gpt.commands", "benchmarks.rows"} <= packages
    for package in packages:
        assert any(fnmatch.fnmatchcase(package, pattern) for pattern in settings["include"]), package


def test_the_tools_of_the_command_line_are_imported_late() -> None:
    assert imported_modules(PACKAGE / "cli.py") <= {
        *("collections.abc", "contextlib", "importlib", "os", "sys", "traceback", "lightning_gpt"),
        *("lightning_gpt.errors", "lightning_gpt.fewer_imports", "lightning_gpt.system_error", "lightning_gpt.trust"),
        *("lightning_gpt.version", "lightning_gpt.commands", "lightning_gpt.hardware"),
    }


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_test_imports_another(file: Path) -> None:
    """What tests share is in modules that hold no tests."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [str(node.module), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        shared = [name for name in modules if not name.startswith(("lightning_gpt", "benchmarks"))]
        assert not any(part.startswith("test_") for name in shared for part in name.split(".")), (
            f"{file} imports a test"
        )


def test_no_two_classes_have_one_name() -> None:
    """Private ones aside: they are read where they stand."""
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(file))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
