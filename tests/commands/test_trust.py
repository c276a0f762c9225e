"""``--trust MODULE``: variants in a module of the user's own, through every command that needs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rich
import torch

from tests.processes import environment, must_run, run_command, tiny_config, tiny_corpus, write_config

VARIANTS = """
from torch import Tensor

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.norms import Norm, norms


@norms.register("peak")
class PeakNorm(Norm):
    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(dim=-1, keepdim=True).clamp(min=self.eps)


@attentions.register("dilated")
class DilatedAttention(MultiHeadAttention):
    def __init__(self, *, gap: int, **shared: object) -> None:
        super().__init__(**shared)
        self.gap = gap

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (columns <= rows) & ((rows - columns) % self.gap == 0)
"""
STEPS = 10


def write_run(folder: Path, steps: int = STEPS) -> Path:
    """A config whose norm and attention are registered in ``folder/mine.py`` alone."""
    (folder / "mine.py").write_text(VARIANTS)
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=steps, val_check_interval=steps // 2)
    config["model"]["init_args"] |= {"norm": {"kind": "peak", "eps": 0.001}, "attention": {"kind": "dilated", "gap": 3}}
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    return write_config(folder / "tiny.yaml", config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of two variants and a run that uses them."""
    folder = tmp_path_factory.mktemp("trust")
    write_run(folder)
    done = must_run("fit", "--trust", "mine", "--config", "tiny.yaml", cwd=folder)
    assert done.stderr.count(" --trust mine\n") == 3  # the commands that it ends with: generate, inspect and resume
    return folder


def checkpoint_of(folder: Path) -> str:
    return str(folder / "runs/tiny/version_0/checkpoints/last.ckpt")


def test_the_variants_are_trained_with_their_options(trained: Path) -> None:
    config = torch.load(checkpoint_of(trained), weights_only=True)["lightning_gpt_model"]["config"]
    assert config["norm"] == {"kind": "peak", "eps": 0.001}
    rest = ("n_kv_head", "head_dim", "qkv_bias", "output_bias", "score_width", "softcap", "rotary_base")
    assert config["attention"] == [{"kind": "dilated", "gap": 3, **dict.fromkeys(rest)}]


def test_a_checkpoint_is_read_with_the_module_and_not_without_it(trained: Path) -> None:
    call = ("generate", "--checkpoint", checkpoint_of(trained), "--ids", "[5, 7]", "--max_new_tokens", "5")
    by_path = must_run(*call, "--trust", str(trained / "mine.py"), cwd=trained.parent)
    by_name = must_run(*call, "--trust=mine", cwd=trained)
    assert by_path.stdout == by_name.stdout != ""
    refused = run_command(*call, cwd=trained)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: checkpoint {checkpoint_of(trained)!r} has norm 'peak', which is not registered: "
        f"name the module that registers it with --trust MODULE, or import it first\n"
    )


def test_a_run_is_resumed_with_the_module_and_not_without_it(trained: Path) -> None:
    call = ("fit", "--ckpt_path", checkpoint_of(trained), "--trainer.max_steps", str(STEPS + 5))
    refused = run_command(*call, cwd=trained)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "error: norm is 'peak'; it must be one of dynamic_erf, dynamic_tanh, layer, none, rms, rms_plus_one, scale, or "
        "from a --trust module"
    )
    other = run_command(*call, "--model.norm", "layer", "--model.attention", "full", cwd=trained)
    assert other.returncode == 2
    assert f"checkpoint {checkpoint_of(trained)!r} has norm 'peak', which is not registered: " in other.stderr
    must_run(*call, "--trust", "./mine.py", cwd=trained)
    resumed = torch.load(trained / "runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == STEPS + 5


def test_the_processes_that_lightning_starts_have_the_variants(tmp_path: Path) -> None:
    write_run(tmp_path, steps=2)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    must_run("--trust", "mine.py", "fit", "--config", "tiny.yaml", *two, cwd=tmp_path)
    assert torch.load(checkpoint_of(tmp_path), weights_only=True)["global_step"] == 2


def test_the_cells_of_a_study_have_the_variants(tmp_path: Path) -> None:
    write_run(tmp_path, steps=2)
    study = {"name": "tiny", "base": ["tiny.yaml"], "grid": {"model.init_args.n_layer": [1]}, "measure": ["test/loss"]}
    write_config(tmp_path / "study.yaml", study)
    call = ("study", "--config", "study.yaml", "--folder", "out")
    must_run(*call, "--trust", "mine.py", cwd=tmp_path)
    (cell,) = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert cell["values"]["test/loss"] > 0
    script = must_run(*call, "--slurm", "--trust", "mine.py", cwd=tmp_path).stdout
    assert script.count(f"--trust {tmp_path.resolve() / 'mine.py'}") == 2  # of the jobs, and of the report


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        ("mine", None, "--trust mine: no module of this name is in the working folder or installed"),
        ("a.mine", None, "--trust a.mine: no module of this name is in the working folder or installed"),
        ("mine.py", None, "--trust mine.py: there is no such .py file"),
        ("a..b", None, "--trust is 'a..b'; it must be a dotted module name or a path to a .py file"),
        ("", None, "--trust is ''; it must be a dotted module name or a path to a .py file"),
        ("mine", "import torch\n\nmissing + 1", "{file}:3: NameError: name 'missing' is not defined"),
        ("mine.py", "\nimport not_there", "{file}:2: ModuleNotFoundError: No module named 'not_there'"),
        ("mine.py", "def f(:", "{file}:1: SyntaxError: invalid syntax"),
        (
            "mine.py",
            'from lightning_gpt.models.norms import norms\nnorms.register("rms")(object)',
            "{file}:2: norm 'rms' is already registered by lightning_gpt.models.norms.RMSNorm; choose another name",
        ),
        ("json.py", "", "--trust json.py: a module 'json' exists already ("),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path, given: str, content: str | None, message: str
) -> None:
    file = tmp_path.resolve() / f"{given.removesuffix('.py')}.py"
    if content is not None:
        file.write_text(content)
    done = run_command("generate", "--checkpoint", "none.ckpt", "--trust", given, cwd=tmp_path)
    assert done.returncode == 2
    assert message.format(file=file) in done.stderr
    assert done.stderr.startswith("error: --trust ")
    assert done.stderr.count("\n") == 1


def test_a_file_in_the_working_folder_does_not_replace_a_package(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise RuntimeError")
    # as the installed script: unlike python -m, it does not put the working folder first
    script = "import sys; sys.path.remove(''); from lightning_gpt.cli import main; sys.exit(main())"
    call = [sys.executable, "-c", script, "generate", "--checkpoint", "none.ckpt", "--trust", "rich"]
    done = subprocess.run(call, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --trust rich: the name is taken by {rich.__file__}; "
        f"rename {tmp_path.resolve() / 'rich.py'}, or give another module\n"
    )


FUNCTIONS = """
from lightning.pytorch.callbacks import Callback

from helper import LONGEST
from lightning_gpt.data.sources.files import Files


class Printed(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("on_fit_start of my own")


class Mine(Files):
    pass


def keep(text):
    return len(text) < LONGEST
"""


@pytest.fixture
def with_functions(tmp_path: Path) -> Path:
    """A folder with a module of a callback, a source and filters, and a config that uses them all."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "helper.py").write_text("LONGEST = 700\n")  # a module that a trusted one imports
    config = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=1, val_check_interval=1)
    common = {"paths": str(tmp_path / "corpus.jsonl")}
    config["data"]["sources"] = [
        {"class_path": "mine.Mine", "init_args": {"name": "one", "keep": "mine.keep", **common}},
        {"class_path": "Files", "init_args": {"name": "two", "keep": "mine.keep", **common}},
    ]
    config["data"]["num_workers"] = 1
    config["trainer"]["callbacks"] = [{"class_path": "mine.Printed"}]
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    write_config(tmp_path / "tiny.yaml", config)
    return tmp_path


def test_a_config_may_name_what_a_trusted_module_holds(with_functions: Path) -> None:
    done = must_run("fit", "--config", "tiny.yaml", "--trust", "mine", cwd=with_functions)
    assert "on_fit_start of my own" in done.stdout
    call = ("--ckpt_path", checkpoint_of(with_functions), "--trust", "mine.py")
    must_run("validate", *call, cwd=with_functions)  # by the config beside the checkpoint
    refused = run_command("validate", *call[:2], cwd=with_functions)
    assert refused.returncode == 2
    assert "mine.Printed, which is not a known class of lightning_gpt, Lightning or torch; " in refused.stderr
    assert refused.stderr.endswith("to use it, add --trust mine\n")


def test_a_loader_process_that_is_started_afresh_has_the_module(with_functions: Path) -> None:
    # as on macOS, and by default from Python 3.14 on
    script = with_functions / "start.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from lightning_gpt.cli import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    sys.exit(main())\n"
    )
    call = [sys.executable, "-P", str(script), "fit", "--config", "tiny.yaml", "--trust", "mine"]
    call += ["--trainer.num_sanity_val_steps", "0", "--trainer.limit_val_batches", "0"]  # fewer such processes
    done = subprocess.run(call, cwd=with_functions, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_trusted_module_imports_is_not_trusted(with_functions: Path) -> None:
    (with_functions / "mine.py").write_text("from os import system as keep")
    sources = [{"class_path": "Files", "init_args": {"paths": "corpus.jsonl", "keep": "mine.keep"}}]
    call = ("fit", "--data.sources", json.dumps(sources), "--trust", "mine")
    refused = run_command(*call, cwd=with_functions)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: data.sources.keep is mine.keep (posix.system): a function must be in a module that --trust names; "
        "to use this one, add --trust posix\n"
    )
