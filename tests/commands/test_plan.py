"""``lightning-gpt plan`` from the front door, and the script that it prints, run with stand-ins for SLURM."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.models import GPT, GPTConfig
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config

SMALL_DEVICE = """
tiny:
  tflops: {fp32: 1, bf16: 2}
  memory_gib: MEMORY
  memory_gb_s: 100
  link_gb_s: 10
  network_gb_s: 1
  node: 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"))
    config["data"]["global_batch"] = 64
    write_config(folder / "tiny.yaml", config)
    for name, memory in (("plenty", 40), ("tight", 0.0014), ("none", 0.0005)):
        (folder / f"{name}.yaml").write_text(SMALL_DEVICE.replace("MEMORY", str(memory)))
    return folder


PLAN = ("plan", "--config", "tiny.yaml", "--device", "tiny", "--devices_file")


def plan(folder: Path, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(must_run(*PLAN, *args, "--json", cwd=folder).stdout)
    return found


def test_a_config_is_read_as_fit_reads_it_and_nothing_is_left(folder: Path) -> None:
    before = sorted(folder.iterdir())
    found = plan(folder, "plenty.yaml", "--model.n_layer", "3", "--trainer.precision=bf16-mixed")
    options = tiny_config(folder / "corpus.jsonl")["model"]["init_args"]
    sizes = {name: value for name, value in options.items() if name in GPTConfig.__dataclass_fields__}
    vocabulary = found["parameters"]["token embedding"] // sizes["dim"]
    model = GPT(GPTConfig(**{**sizes, "n_layer": 3, "vocab_size": vocabulary}))
    assert found["parameters"]["all"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["precision"] == "bf16-mixed"
    assert found["plan"]["tokens_per_step"] == 64 * sizes["block_size"]
    assert found["plan"]["devices"] == 1
    assert sorted(folder.iterdir()) == before


def test_the_tables_name_what_they_assume(folder: Path) -> None:
    said = must_run(*PLAN, "plenty.yaml", "--share_of_peak", "0.25", cwd=folder, fresh=True).stdout
    for words in ("products at 25% of the device's peak", "memory of a device, GiB", "block", "cache of generation"):
        assert words in said
    assert max(map(len, said.splitlines())) <= 120


def test_a_layout_of_the_config_is_planned_as_it_is(folder: Path) -> None:
    found = plan(folder, "plenty.yaml", "--parallel.shard", "2", "--parallel.tensor=2", "--gpus=8")
    layout = found["plan"]["layout"]
    assert (layout["data"], layout["shard"], layout["tensor"]) == (2, 2, 2)
    assert set(found["plan"]["traffic"]) == {"data", "shard", "tensor"}


def test_a_search_takes_the_devices_that_are_given_or_the_fewest(folder: Path) -> None:
    assert plan(folder, "plenty.yaml", "--gpus", "4")["plan"]["devices"] == 4
    fewest = plan(folder, "tight.yaml")["plan"]
    assert fewest["fits"]
    assert fewest["devices"] > 1


def test_the_trainers_devices_are_those_of_a_search_and_its_accelerator_that_of_the_script(folder: Path) -> None:
    assert plan(folder, "plenty.yaml", "--trainer.devices", "2")["plan"]["devices"] == 2
    done = run_command(*PLAN, "plenty.yaml", "--json", "--slurm", cwd=folder)
    assert done.returncode == 2
    assert "--json and --slurm cannot be combined" in done.stderr
    done = run_command(*PLAN, "plenty.yaml", "--gpus", "2", "--parallel.offload", "true", cwd=folder)
    assert done.returncode == 2
    assert "parallel.offload is true, which changes nothing while parallel.shard is 1" in done.stderr
    script = must_run(*PLAN, "plenty.yaml", "--gpus", "2", "--slurm", cwd=folder).stdout
    assert "--trainer.accelerator=gpu" in script, "the config trains on a CPU, and the device is none"
    on_cpu = ("plan", "--config", "tiny.yaml", "--device", "CPU-EPYC-9654", "--gpus", "2", "--slurm")
    assert "--trainer.accelerator" not in must_run(*on_cpu, cwd=folder).stdout, "the config's is right"
    script = must_run(*on_cpu, "--trainer.accelerator", "gpu", cwd=folder).stdout
    assert "--trainer.accelerator=cpu" in script
    assert "gpu" not in script.partition(" fit ")[2]


def test_what_does_not_fit_is_said_with_what_would(folder: Path) -> None:
    done = run_command(*PLAN, "tight.yaml", "--parallel.data", "4", "--gpus", "4", cwd=folder)
    assert done.returncode == 1
    assert "data 4 does not fit: the fullest device lacks" in done.stderr
    assert done.stderr.rstrip().endswith("fits")
    done = run_command(*PLAN, "none.yaml", "--gpus", "2", cwd=folder)
    assert done.returncode == 1
    assert "no layout of 2 does" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def script(folder: Path) -> str:
    return must_run(*PLAN, "plenty.yaml", "--parallel.shard=2", "--gpus", "8", "--slurm", cwd=folder).stdout


def test_options_that_the_layout_replaces_may_be_two_words(folder: Path, script: str) -> None:
    words = ("--parallel.shard", "2", "--trainer.devices", "4", "--gpus", "8", "--slurm")
    assert must_run(*PLAN, "plenty.yaml", *words, cwd=folder).stdout == script


def test_the_script_starts_torchrun_on_every_node(folder: Path, script: str) -> None:
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --requeue\n" in script
    for words in ("--nnodes=2 --nproc_per_node=4", "--parallel.shard=2", "--parallel.data=4", "--trainer.num_nodes=2"):
        assert words in script
    assert "--slurm" not in script
    elsewhere = ("--trainer.default_root_dir", "elsewhere", "--gpus=2", "--slurm")
    assert "ls -td elsewhere/runs/tiny/version_*" in must_run(*PLAN, "plenty.yaml", *elsewhere, cwd=folder).stdout
    assert "--device=" not in script


def test_the_script_of_a_searched_layout_is_one_that_fit_takes(folder: Path) -> None:
    given = ("--data.batch_size", "48", "--gpus", "2", "--trainer.max_steps", "1", "--name", "searched")
    script = must_run(*PLAN, "plenty.yaml", *given, "--slurm", cwd=folder).stdout
    assert "--data.batch_size=32" in script
    assert script.count("--data.batch_size") == 1
    line = next(line for line in script.splitlines() if "lightning_gpt fit" in line)
    options = shlex.split(line.partition(" fit ")[2].partition("${last")[0])
    here = ("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0")
    must_run("fit", *options, *here, cwd=folder, timeout=300)
    many = ("--data.batch_size", "1", "--data.global_batch", "4096", "--gpus", "2")
    assert plan(folder, "plenty.yaml", *many)["plan"]["devices"] == 2, "a pipeline would have 4,096 micro-batches"
    assert (folder / "runs/searched/version_0/checkpoints/last.ckpt").exists()
    pipeline = plan(folder, "plenty.yaml", "--parallel.pipeline", "2", "--data.batch_size", "8", "--gpus", "2")["plan"]
    assert (pipeline["batch_size"], pipeline["batches"], pipeline["micro_batches"], pipeline["rows"]) == (8, 8, 32, 2)


def test_a_model_with_memory_is_planned_in_copies(folder: Path) -> None:
    memory = ("--model.memory", "segment", "--model.position", "rotary")
    found = plan(folder, "plenty.yaml", *memory, "--gpus", "4")["plan"]["layout"]
    assert (found["data"], found["shard"]) == (4, 1)
    assert plan(folder, "plenty.yaml", *memory)["plan"]["devices"] == 1
    script = must_run(*PLAN, "plenty.yaml", *memory, "--gpus", "4", "--slurm", cwd=folder).stdout
    assert "--parallel." not in script, "fit makes copies without a layout, and refuses every layout"


def stand_in(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_the_script_resumes_from_the_newest_checkpoint_and_queues_itself_again(
    tmp_path: Path, folder: Path, script: str
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_in(
        bin_folder,
        "srun",
        f'echo "$@" > {tmp_path}/called; trap "touch {tmp_path}/saved; exit 0" TERM; sleep 60 & wait',
    )
    stand_in(
        bin_folder,
        "scontrol",
        f'if [ "$1" = show ]; then echo first; echo second; else echo "$@" > {tmp_path}/again; fi',
    )
    for version in ("version_0", "version_1"):
        checkpoint = folder / "runs/tiny" / version / "checkpoints/last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    os.utime(folder / "runs/tiny/version_0/checkpoints/last.ckpt", (1, 1))
    (tmp_path / "job.sh").write_text(script)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x"}
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=env, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "called").exists() or not (tmp_path / "called").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0
    finally:
        job.kill()
    called = (tmp_path / "called").read_text()
    assert "--rdzv_endpoint=first:29500" in called
    assert called.split()[-2:] == ["--ckpt_path", "runs/tiny/version_1/checkpoints/last.ckpt"]
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "again").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--device", "h100"), "no device is called 'h100'; did you mean H100-PCIe or H100-SXM?"),
        (("--gpus", "0"), "gpus is 0; it must be a whole number from 1"),
        (("--gpus", "3", "--parallel.tensor=2"), r"parallel (tensor 2) needs a multiple of 2 devices, but there are 3"),
        (("--gpus=3", "--parallel.tensor=3"), "parallel.tensor 3 does not divide n_head"),
        (("--gpus", "7"), "no layout of 7 devices divides this model and batch; set data.global_batch to a multiple"),
        (("--device", "V100", "--trainer.precision=bf16-mixed"), "V100 has no bf16 units for precision bf16-mixed"),
        (("--parallel.shard=2", "--trainer.precision=16-mixed"), "trainer.precision 16-mixed and parallel (shard 2)"),
        (
            ("--parallel.shard=2", "--model.optimization.qk_clip=100", "--gpus=2"),
            "optimization.qk_clip and parallel cannot be combined",
        ),
        (
            ("--parallel.tensor=2", "--model.compile_blocks=true", "--gpus=2"),
            "compile_blocks and parallel.tensor 2 cannot be combined",
        ),
        (
            ("--device=CPU-EPYC-9654", "--parallel.shard=2", "--parallel.offload=true", "--gpus=2"),
            "parallel.offload moves shards to the CPU's memory, and this run is on the CPU",
        ),
        (("--parallel.data=3", "--gpus=3"), "data.global_batch is 64 rows, but a micro-batch has 12"),
        (
            ("--trainer.accumulate_grad_batches=2", "--gpus=2"),
            "data.global_batch 64 and trainer.accumulate_grad_batches 2 cannot both be given: leave one out",
        ),
        (("--nope", "3"), "unknown option --nope"),
        (("--share_of_peak", "2"), "share_of_peak is 2.0; it must be a number above 0 and at most 1"),
        (("--devices_file", "corpus.jsonl"), "corpus.jsonl"),
        (("--devices_file", "missing.yaml"), "devices file 'missing.yaml' cannot be read: No such file"),
        (("--config", "missing.yaml"), "config file 'missing.yaml' cannot be read: No such file"),
    ],
)
def test_a_wrong_call_is_one_line(args: tuple[str, ...], said: str, folder: Path) -> None:
    done = run_command("plan", "--config", "tiny.yaml", *args, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_lists_the_devices(folder: Path) -> None:
    said = must_run("plan", "--help", cwd=folder).stdout
    assert "H100-SXM" in said
    assert "--share_of_peak" in said
