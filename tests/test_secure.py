"""No file of the package reads its input in a way that can run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("lightning_gpt", "benchmarks") for file in (ROOT / folder).rglob("*.py"))

MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "runpy", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.hub.load"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "yaml.load_all"),
}

EXCEPTIONS = {
    ("lightning_gpt/checkpoint_file.py", "pickle.UnpicklingError"): "the exception that torch.load raises",
    ("lightning_gpt/trust.py", "import_module"): "the modules that the command line names",
    ("lightning_gpt/trust.py", "exec_module"): "the files that the command line names",
    (
        "lightning_gpt/studies/report/sections/__init__.py",
        "import_module",
    ): "after asking whether the module is trusted",
    ("lightning_gpt/cli.py", "import_module"): "a name of its own table",
    ("lightning_gpt/commands/completion.py", "import_module"): "a name of the table of commands",
    ("lightning_gpt/fewer_imports.py", "exec_module"): "torchmetrics, by the loader that was found for it",
    (
        "lightning_gpt/interop/compare.py",
        "trust_remote_code",
    ): "after --custom_code, or for code that this package wrote",
    ("lightning_gpt/doctor/installation.py", "import_module"): "the package's own dependencies",
    ("lightning_gpt/__init__.py", "import_module"): "names of its own table",
    ("lightning_gpt/studies/run/starter.py", "import_module"): "names of its own table",
    ("lightning_gpt/studies/run/starter.py", "runpy"): "a fork of this process becomes the command itself",
    ("benchmarks/peers.py", "exec_module"): "other projects' code, in folders that the command line names",
    ("lightning_gpt/models/registry.py", "import_module"): "the files of the package's own folders",
}
"""What is allowed where, and why."""


def risks(tree: ast.AST) -> Iterator[str]:
    """What in a file could run code that is in its input."""
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in _SAFE_LOADERS for base in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _risks_of_call(node, {*_SAFE_LOADERS, *safe_loaders})
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            yield "trust_remote_code"
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle") and _value(node) is not False:
            yield node.arg


_SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader", "CSafeLoader"}


def _risks_of_call(node: ast.Call, safe_loaders: set[str]) -> Iterator[str]:
    called = ast.unparse(node.func)
    name = called.rpartition(".")[2]
    given = {keyword.arg: keyword for keyword in node.keywords}
    if called in BUILTINS | CALLS or name in ("exec_module", "extractall"):
        yield called if called in BUILTINS | CALLS else name
    if name == "import_module" and not isinstance(node.args[0], ast.Constant):
        yield name
    if called == "torch.load" and not ("weights_only" in given and _value(given["weights_only"]) is True):
        yield called
    if called == "yaml.load" and not ("Loader" in given and ast.unparse(given["Loader"].value) in safe_loaders):
        yield called


def _value(keyword: ast.keyword) -> object:
    return keyword.value.value if isinstance(keyword.value, ast.Constant) else None


def test_nothing_reads_input_as_code() -> None:
    found = {(str(file.relative_to(ROOT)), risk) for file in FILES for risk in risks(ast.parse(file.read_text()))}
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "an exception that is not needed"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import torch, dill",
        "from pickle import loads",
        "from marshal import loads as read",
        "eval('1')",
        "exec(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "spec.loader.exec_module(module)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "os.system('ls')",
        "os.popen('ls')",
        "load_dataset(path, trust_remote_code=True)",
        "load_dataset(path, trust_remote_code=False)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "class L(yaml.Loader): pass\nyaml.load(text, Loader=L)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.hub.load('a', 'b')",
        "tempfile.mktemp()",
        "archive.extractall(folder)",
    ],
)
def test_each_way_is_found(code: str) -> None:
    assert list(risks(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.compile(model)",
        "import_module('torch')",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "class L(yaml.SafeLoader): pass\nyaml.load(text, Loader=L)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run(['ls'])",
    ],
)
def test_what_is_safe_is_not_found(code: str) -> None:
    assert not list(risks(ast.parse(code)))
