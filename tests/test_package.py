"""The wheel: built from the source distribution, installed where nothing else of this project is, and run."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import lightning_gpt
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference import prompt_ids, stream_text
from lightning_gpt.loading import load
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.version import described_version

ROOT = Path(__file__).parents[1]
TINY = {"n_layer": 1, "n_head": 1, "dim": 8, "block_size": 16, "vocab_size": 50257}
NOT_OURS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] = {}) -> str:
    """Run a command outside this checkout's Python path; returns what it printed."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *NOT_OURS)}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env={**outside, **env}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def commit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository of this checkout's files with one commit, and that commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    source = tmp_path_factory.mktemp("package") / "source"
    unwanted = (".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "studies", "commit.txt")
    source.mkdir()
    for name in ("lightning_gpt", "benchmarks", "configs", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*unwanted[:-3], "commit.txt"))
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, source)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    run(*git, "init", "-q", cwd=source)
    run(*git, "add", "-A", cwd=source)
    run(*git, "commit", "-q", "-m", "all", cwd=source)
    return source, run(*git, "rev-parse", "HEAD", cwd=source).strip()[:12]


@pytest.fixture(scope="module")
def built(commit: tuple[Path, str]) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    pytest.importorskip("build")
    source, _ = commit
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", source.parent / "dist", source)
    run(*command, cwd=source.parent)
    return source.parent / "dist"


@pytest.fixture(scope="module")
def bare(built: Path) -> Path:
    """The ``bin`` of an environment with the wheel and, of everything else, only what it depends on."""
    venv = built.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=built.parent)
    (wheel,) = built.glob("*.whl")
    site = next((venv / "lib").glob("python*/site-packages"))
    install = ("install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    run(sys.executable, "-m", "pip", "--python", venv / "bin/python", *install, cwd=built.parent)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return venv / "bin"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and GPT-2's tokenizer, whose table is in the package."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY))
    content = {
        "lightning_gpt_model": model.describe(),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "TextData": {"tokenizer": Tokenizer.gpt2().state_dict()},
        "global_step": 0,
    }
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    write_checkpoint(content, path)
    return path


def test_both_distributions_hold_what_a_user_needs(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    ours = {str(path.relative_to(ROOT)) for top in ("lightning_gpt", "benchmarks") for path in (ROOT / top).rglob("*")}
    wanted = {name for name in ours if (ROOT / name).is_file() and "__pycache__" not in name}
    assert wanted <= {*names, "lightning_gpt/commit.txt"}, "a file of the package is not in the wheel"
    assert any(name.endswith("LICENSE.gpt2") and ".dist-info/" in name for name in names)
    assert not any(name.startswith(("tests/", "docs/", "site/")) for name in names)
    described = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Requires-Python: {project['requires-python']}" in described
    with tarfile.open(archive) as sources:
        kept = {name.partition("/")[2] for name in sources.getnames()}
    assert {"configs/quickstart.yaml", "CITATION.cff", "README.md", "setup.py", "lightning_gpt/commit.txt"} <= kept


def test_the_wheel_runs_and_names_its_commit(
    bare: Path, commit: tuple[Path, str], checkpoint: Path, tmp_path: Path
) -> None:
    version = run(bare / "lightning-gpt", "--version", cwd=tmp_path)
    assert version == f"lightning-gpt {lightning_gpt.__version__} (commit {commit[1]})\n"
    script = f"""
import lightning_gpt
assert lightning_gpt.__file__.startswith({str(bare.parent)!r}), lightning_gpt.__file__
from lightning_gpt.cli import main
import sys
for call in (
    ["generate", "--checkpoint", {str(checkpoint)!r}, "--prompt", "The city", "--max_new_tokens", "4"],
    ["inspect", "--checkpoint", {str(checkpoint)!r}, "--text", "The city was", "--output", "page"],
    ["plan", "--device", "H100-SXM"],
):
    sys.argv[1:] = call
    assert main() == 0, call
print(lightning_gpt.load({str(checkpoint)!r}).generate("The city", 4, temperature=0))
"""
    said = run(bare / "python", "-c", script, cwd=tmp_path)
    assert said.startswith("The city")
    assert load(checkpoint).generate("The city", 4, temperature=0) in said
    assert "<canvas" in (tmp_path / "page/index.html").read_text()


def test_a_changed_checkout_says_so(commit: tuple[Path, str], tmp_path: Path) -> None:
    source, head = commit
    command = (sys.executable, "-m", "lightning_gpt", "--version")
    assert run(*command, cwd=source).strip().endswith(f"(commit {head})")
    (source / "README.md").write_text("changed")
    assert run(*command, cwd=source).strip().endswith(f"(commit {head}-dirty)")
    run("git", "checkout", "-q", "README.md", cwd=source)
    without = {"PATH": str(tmp_path)}
    assert run(*command, cwd=source, env=without).strip() == f"lightning-gpt {lightning_gpt.__version__}"


def test_version_of_this_checkout_starts_with_the_number() -> None:
    assert re.match(
        rf"{re.escape(lightning_gpt.__version__)}( \(commit [0-9a-f]{{12}}(-dirty)?\))?$", described_version()
    )


def test_every_public_name_is_there_and_described() -> None:
    assert lightning_gpt.__all__ == sorted(lightning_gpt.__all__, key=lambda name: (not name.isupper(), name))
    assert set(lightning_gpt.__all__) <= set(dir(lightning_gpt))
    for name in lightning_gpt.__all__:
        public = getattr(lightning_gpt, name)
        assert public.__name__ == name
        assert public.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightning_gpt.nothing  # noqa: B018
    assert (ROOT / "lightning_gpt/py.typed").is_file()


def test_a_loaded_model_continues_text_as_the_command_does(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert model.tokenizer is not None
    tokenizer = Tokenizer.gpt2()
    said = model.generate("The city", 30, temperature=0.8, generator=torch.Generator().manual_seed(3))
    pieces = stream_text(model, tokenizer, prompt_ids(model, tokenizer, "The city"), 30, Sampling(temperature=0.8), 3)
    assert said == "The city" + "".join(pieces)
    assert isinstance(model.generate("", 2, temperature=0), str)


def test_text_without_a_tokenizer_or_with_lengths_is_refused(checkpoint: Path) -> None:
    model = load(checkpoint)
    with pytest.raises(CallError, match="lengths are given with a text"):
        model.generate("a", 1, lengths=torch.tensor([1]))  # type: ignore[call-overload]
    model.tokenizer = None
    with pytest.raises(CallError, match="has no tokenizer"):
        model.generate("a", 1)


def test_the_citation_is_of_this_package() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "the keys that the format requires"
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == lightning_gpt.__version__
    assert all("name" in author or {"family-names", "given-names"} <= set(author) for author in citation["authors"])
