"""``lightning-gpt doctor``: each bad state is a real one, found by the command."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import packaging
import pytest
import torch

from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.training.precision import fastest_precision
from tests.processes import environment, must_run, run_command, tiny_config, tiny_corpus, write_config

ROOT = Path(__file__).parents[2]
WITHOUT_PACKAGES = f"{sys.executable} -S -m lightning_gpt"  # what needs no package is shown within a second
Findings = dict[str, list[tuple[str, str, str]]]


def findings_of(done: subprocess.CompletedProcess[str]) -> Findings:
    """Level, text and remedy of each check's findings, after what holds for every answer."""
    assert "Traceback" not in done.stderr, done.stderr
    answer, found = json.loads(done.stdout), Findings()
    for each in answer["findings"]:
        found.setdefault(each["check"], []).append((each["level"], each["text"], each["remedy"]))
        assert each["level"] in ("ok", "warning", "problem")
        assert bool(each["remedy"]) == (each["level"] != "ok"), each
        assert "\n" not in each["text"] + each["remedy"]
        assert len(each["text"]) <= 300
    assert done.returncode == (1 if answer["problems"] else 0), done.stderr
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("libgomp")]
    assert [line.startswith("error: the doctor found ") for line in said] == [True] * bool(answer["problems"])
    return found


def doctor(*args: str, cwd: Path, env: Mapping[str, str | None] = {}) -> Findings:
    """Run the command in a fork."""
    return findings_of(run_command("doctor", "--json", *args, cwd=cwd, env=env))


def doctor_in_a_fresh_process(
    cwd: Path,
    env: Mapping[str, str | None],
    prefix: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    before: Callable[[], None] | None = None,
) -> Findings:
    """Run the command in an interpreter of its own.

    Args:
        cwd: The working folder.
        env: Changes of the environment.
        prefix: What is typed before the interpreter.
        flags: The interpreter's own flags.
        before: Called in the process before it becomes the command.
    """
    call = [*prefix, sys.executable, *flags, "-m", "lightning_gpt", "doctor", "--json"]
    done = subprocess.run(
        call, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=120, check=False, preexec_fn=before
    )
    return findings_of(done)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, so that lines are as wide as they are for a user."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its corpus and a finished run."""
    folder = tmp_path_factory.mktemp("doctor")
    corpus = tiny_corpus(folder / "corpus.jsonl")
    write_config(folder / "tiny.yaml", tiny_config(corpus, max_steps=4, val_check_interval=4))
    must_run("fit", "--config", "tiny.yaml", cwd=folder)
    return folder


def test_the_table_fits_80_columns_and_leaves_nothing_behind(place: Path) -> None:
    done = run_command("doctor", cwd=place, fresh=True, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = done.stdout.splitlines()
    assert max(map(len, rows)) <= 80
    assert "\033" not in done.stdout, "colours are for terminals"
    names = {row[9:22].strip() for row in rows if row.startswith(("ok", "warning"))}
    assert {"python", "packages", "torch", "threads", "precision", "memory", "disk", "home", "network"} <= names
    assert rows[-1].startswith("no problems, ")
    assert list(place.iterdir()) == []


def test_colours_on_a_terminal(place: Path) -> None:
    script = [shutil.which("script") or pytest.skip("script, which makes a terminal, is not installed"), "-qec"]
    call = [*script, f"{WITHOUT_PACKAGES} doctor --offline", "/dev/null"]
    for changes, expected in (({}, "\033[31mproblem\033[0m  python"), ({"NO_COLOR": "1"}, "problem  python")):
        env = environment({"PYTHONPATH": str(ROOT), **changes})
        shown = subprocess.run(call, cwd=place, env=env, capture_output=True, text=True, check=False).stdout
        assert shown.startswith(expected)


def test_precision_is_the_one_that_fit_selects(place: Path) -> None:
    ((level, text, _),) = doctor("--offline", cwd=place)["precision"]
    assert (level, text.split()[0]) == ("ok", fastest_precision()[0])


def test_a_wrong_call(place: Path) -> None:
    for args, said in (
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--config"], "argument --config: expected one argument"),
        (["--check", "x"], "unrecognized arguments: --check x"),
    ):
        done = run_command("doctor", *args, cwd=place)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {said}; --help lists the options\n"


def test_without_any_package_all_that_can_be_checked_is(place: Path) -> None:
    """Nothing but ``packaging`` is installed, and the package's own metadata is not either."""
    found = doctor_with_fake_packages(place, {})
    ((level, text, remedy),) = found["packages"]
    assert level == "problem"
    assert text.startswith("not installed: torch, lightning, torchmetrics, ")
    assert remedy == "run pip install -e . in the checkout"
    assert found["python"][0][0] == "ok"
    assert "0 of 11 packages; without pytest" in found["extras"][0][1]
    for check in ("torch", "devices", "threads", "precision"):
        assert found[check] == [
            ("problem", "this check needs a package that is missing or broken: No module named 'torch'", remedy)
        ]
    for check in ("memory", "disk", "file system", "limits", "home", "network"):
        assert found[check][0][0] in ("ok", "warning"), found[check]


def test_a_broken_installation_on_a_badly_set_up_machine(place: Path) -> None:
    """Many bad states in one process: versions, a broken import, load, limits, encodings."""
    distribution(place, "torch", "1.0")
    distribution(place, "pytorch-lightning", "2.0")
    distribution(
        place,
        "lightning-gpt",
        "0.0",
        "Requires-Python: >=4\nRequires-Dist: torch>=2.13\nRequires-Dist: datasketch\nRequires-Dist: lightning>=2.6\n",
    )
    (place / "datasketch.py").write_text("raise OSError('libsketch.so: cannot open shared object file')")
    (place / "sitecustomize.py").write_text("import os\nos.getloadavg = lambda: (1e3, 0, 0)\ndel os.statvfs")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        resource.setrlimit(resource.RLIMIT_CPU, (10_000, 10_000))

    env = {"PYTHONPATH": f"{place}:{ROOT}", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    found = doctor_in_a_fresh_process(place, {**env, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, before=limit)

    ((level, text, _),) = found["python"]
    assert (level, text.split(", ")[1]) == ("problem", "but lightning-gpt needs >=4")
    assert ("problem", "torch 1.0 is installed, but >=2.13 is needed", "pip install 'torch>=2.13'") in found["packages"]
    assert found["packages"][1][1:] == (
        "datasketch 2.0.0 cannot be imported: OSError: libsketch.so: cannot open shared object file",
        "pip install --force-reinstall 'datasketch'",
    )
    duplicates = [text for level, text, _ in found["duplicates"] if level == "warning"]
    assert "torch is installed 2 times on Python's path; the first one found is used" in duplicates
    assert any("pytorch-lightning 2.0 differ" in text for text in duplicates)
    assert found["load"][0][:2] == (
        "warning",
        f"1000.0 processes on {os.cpu_count()} cores in the last minute: training is slow and timings are noisy",
    )
    assert [text for _, text, _ in found["limits"]] == [
        "at most 200 open files",
        "file size limited to 1,073,741,824 bytes",
        "processor time limited to 10,000 s",
    ]
    assert found["encoding"][0][0] == "warning"
    assert "output ascii" in found["encoding"][0][1]
    # what no check expects becomes a line, here in a system without os.statvfs
    assert found["disk"] == [
        (
            "problem",
            "this check failed: AttributeError: module 'shutil' has no attribute 'disk_usage'",
            "report it as a bug, with this line",
        )
    ]


def doctor_with_fake_packages(place: Path, env: Mapping[str, str | None], prefix: tuple[str, ...] = ()) -> Findings:
    """Run the command where no package is installed but ``packaging`` and what is in ``place``."""
    (place / "packaging").symlink_to(Path(packaging.__file__).parent)
    return doctor_in_a_fresh_process(place, {"PYTHONPATH": f"{place}:{ROOT}", **env}, prefix, flags=("-S",))


def distribution(folder: Path, name: str, version: str, more: str = "") -> None:
    """Put a package's metadata, without the package, into ``folder``."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")


FAKE_TORCH = """
import types
__version__, bfloat16, float32 = "2.13.0", 1, 2
version = types.SimpleNamespace(cuda=CUDA, hip=None)
dtype, get_num_threads = object, lambda: 2
backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: False))
cuda = types.SimpleNamespace(
    device_count=lambda: GPUS, is_available=lambda: GPUS > 0, mem_get_info=lambda number: (FREE, 80 * 2**30),
    get_device_capability=lambda number: (9, 0), get_device_name=lambda number: "H100",
    is_bf16_supported=lambda **options: True,
)
"""


@pytest.mark.parametrize(
    ("cuda", "driver", "gpus", "free", "expected"),
    [
        (None, True, 0, 0, ("warning", "torch 2.13.0 is built for CPUs only, but this machine has 1 NVIDIA GPU(s)")),
        ("13.0", True, 0, 0, ("problem", "torch 2.13.0 (CUDA 13.0) cannot use this machine's 1 NVIDIA GPU(s)")),
        ("13.0", True, 1, 1, ("ok", "torch 2.13.0, built for CUDA 13.0")),
        ("13.0", True, 1, 79, ("ok", "torch 2.13.0, built for CUDA 13.0")),
        (
            "13.0",
            False,
            0,
            0,
            ("ok", "torch 2.13.0, built for CUDA 13.0; no GPU here (the CPU build takes less space)"),
        ),
    ],
)
def test_the_build_of_torch_and_the_gpus(
    place: Path, cuda: str | None, driver: bool, gpus: int, free: int, expected: tuple[str, str]
) -> None:
    """A torch that answers as one with CUDA does, and a driver's list of GPUs mounted where the driver has it."""
    may_mount = shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    if not may_mount or not Path("/proc/driver").is_dir():
        pytest.skip("this user may not mount a file system")
    values = f"CUDA, GPUS, FREE = {cuda!r}, {gpus}, {free * 2**30}\n"
    (place / "torch.py").write_text(values + FAKE_TORCH)
    mount = "mount -t tmpfs none /proc/driver" + (" && mkdir -p /proc/driver/nvidia/gpus/0" if driver else "")
    enter = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    found = doctor_with_fake_packages(place, {"OMP_NUM_THREADS": "many"}, enter)
    assert found["threads"][0][0] == "warning"
    assert "(OMP_NUM_THREADS is 'many'): it is not a number of at least 1 and is ignored" in found["threads"][0][1]
    assert found["torch"][0][:2] == expected
    level, text, _ = found["devices"][0]
    if gpus:
        busy = ": another process uses it" if free == 1 else ""
        assert text == f"GPU 0: H100, {free:.1f} of 80.0 GiB free, bf16{busy}"
        assert level == ("warning" if busy else "ok")
        assert found["precision"] == [("ok", "bf16-mixed is selected: this GPU has bf16 units", "")]
    else:
        assert level == "ok"
        assert text.endswith("no CUDA device")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (version 1) for processor time and one for memory, with limits; their names."""
    folders = [Path("/sys/fs/cgroup") / kind / f"doctor-test-{os.getpid()}" for kind in ("cpu", "memory", "pids")]
    try:
        for folder in folders:
            folder.mkdir()
        (folders[0] / "cpu.cfs_quota_us").write_text("50000")
        (folders[1] / "memory.limit_in_bytes").write_text(str(2**30))
        (folders[2] / "pids.max").write_text("100")
    except OSError:
        for folder in folders:
            if folder.is_dir():
                folder.rmdir()
        pytest.skip("this user may not make control groups of version 1")
    yield folders[0]
    for folder in folders:
        folder.rmdir()


def test_limits_of_a_control_group(group: Path, place: Path) -> None:
    enter = "".join(
        f"echo $$ > {group.parents[1] / kind / group.name}/cgroup.procs; " for kind in ("cpu", "memory", "pids")
    )
    (place / "torch.py").write_text("CUDA, GPUS, FREE = None, 0, 0\n" + FAKE_TORCH)
    found = doctor_with_fake_packages(place, {"OMP_NUM_THREADS": "2"}, ("sh", "-c", f'{enter} exec "$@"', "sh"))
    cores = len(os.sched_getaffinity(0))
    assert found["threads"][0] == (
        "warning",
        f"torch uses 2; {cores} of {os.cpu_count()} cores are usable, limited to the time of 0.5 cores "
        "(OMP_NUM_THREADS is '2'): threads wait for each other, which slows training down",
        "export OMP_NUM_THREADS=1",
    )
    level, text, _ = found["memory"][0]
    assert level == "warning"
    assert text.endswith(" GiB, as limited by the container or batch job")
    assert found["limits"][0][:2][0] == "warning"
    assert any(text.startswith("at most ") and text.endswith(" processes") for _, text, _ in found["limits"])


SURROUNDINGS: list[tuple[dict[str, str | None], str, str]] = [
    (
        {"TMPDIR": "/nonexistent/tmp"},
        "temporary",
        "TMPDIR is '/nonexistent/tmp', which cannot be written; /tmp is used",
    ),
    ({"HOME": None}, "home", "HOME is not set; "),
    ({"HOME": "/nonexistent/home"}, "home", "HOME is '/nonexistent/home', which is not a folder"),
]


@pytest.mark.parametrize(("env", "check", "said"), SURROUNDINGS, ids=lambda value: str(value)[:30])
def test_a_bad_environment(place: Path, env: dict[str, str | None], check: str, said: str) -> None:
    ((level, text, _),) = doctor("--offline", cwd=place, env=env)[check]
    assert level == "warning"
    assert text.startswith(said)


def test_the_network(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub = f"http://127.0.0.1:{server.getsockname()[1]}"
        env: dict[str, str | None] = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": None, "no_proxy": "*"}
        env |= dict.fromkeys(("http_proxy", "HTTP_PROXY"))
        expected = ("ok", f"{hub}: reachable (needed by sources of class Hub only)", "")
        assert doctor(cwd=place, env=env)["network"] == [expected]
        through = {**env, "HF_ENDPOINT": "http://hub.invalid", "http_proxy": hub}
        assert doctor(cwd=place, env=through)["network"][0][1].startswith(
            "http://hub.invalid through the proxy 127.0.0.1: reachable"
        )
    ((level, text, _),) = doctor(cwd=place, env=env)["network"]
    assert (level, text.split(",")[0]) == ("ok", f"{hub}: not reachable")
    assert "HF_HUB_OFFLINE is set" in doctor(cwd=place)["network"][0][1]
    assert "network" not in doctor("--offline", cwd=place, env=env)


@pytest.fixture
def mounted(place: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a tmpfs with the given options; returns its folder."""
    folder = place / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("options", "level", "said"),
    [
        ("size=16m", "warning", "0.0 GiB free; written, synced, renamed and read back"),
        ("size=64k", "problem", "cannot be written: No space left on device"),
        ("size=16m,ro", "problem", "cannot be written: Read-only file system"),
    ],
)
def test_a_bad_disk(mounted: Callable[[str], Path], options: str, level: str, said: str) -> None:
    folder = mounted(options)
    found = doctor("--offline", cwd=folder, env={"TMPDIR": str(folder), "HOME": str(folder)})
    assert found["disk"][0][0] == level
    assert said in found["disk"][0][1]
    assert found["file system"][0][:2] == ("warning", "runs are on tmpfs: in memory, lost at a reboot")
    assert list(folder.iterdir()) == []
    if "ro" in options:
        assert found["home"][0][1] == f"HOME is '{folder}', which cannot be written"
        assert found["temporary"][0][1] == f"TMPDIR is '{folder}', which cannot be written; /tmp is used"
    elif level == "warning":
        assert found["temporary"][0][:2] == ("warning", f"{folder}: 0.0 GiB free, the same file system as runs")


def test_a_good_config_and_checkpoint(trained: Path) -> None:
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    found = doctor("--offline", "--config", "tiny.yaml", "--checkpoint", last, cwd=trained)
    assert [text for _, text, _ in found["config"]] == [
        "tiny.yaml: fit accepts it",
        "the run is kept in runs/tiny, 1 so far",
    ]
    weights = torch.load(trained / last, weights_only=True)["state_dict"]
    total = sum(weight.numel() for weight in weights.values())
    assert found["model"][0][1].startswith(f"{total:,} parameters; 0.00 GiB for weights, gradients and optimizer, of ")
    assert found["data"] == [("ok", "files (tokenised while training); 4 steps, each of 4 rows (128 tokens)", "")]
    size = (trained / last).stat().st_size
    assert [text for _, text, _ in found["checkpoint"]] == [
        f"{last}: whole ({size:,} bytes checked); gpt, step 4, {total:,} weights",
        "the config builds the same architecture, so the run can be resumed",
    ]
    of_run = doctor("--offline", "--checkpoint", "runs/tiny/version_0", cwd=trained)["checkpoint"]
    assert of_run[0][1].startswith(f"runs/tiny/version_0: whole ({size:,} bytes checked)")
    assert sorted(each.name for each in (trained / "runs/tiny").iterdir()) == ["version_0"], "doctor starts no run"


CORRECT = "correct the config; lightning-gpt fit --help lists the options"


@pytest.mark.parametrize(
    ("change", "check", "level", "said"),
    [
        ({"trainer": {"accelerator": "gpu"}}, "config", "problem", "trainer.accelerator is 'gpu'"),
        ({"trainer": {"bogus": 1}}, "config", "problem", "unknown key 'trainer.bogus'"),
        ({"name": "file.txt/x"}, "config", "problem", "the run's folder runs/file.txt/x cannot be made in "),
        ({"data": {"prepared": "nowhere"}}, "config", "problem", "prepared folder 'nowhere' does not exist"),
        (
            {"data": {"sources": [{"class_path": "Files", "init_args": {"paths": "no.txt"}}]}},
            "config",
            "problem",
            "data file 'no.txt' does not exist",
        ),
        ({"trainer": {"max_steps": -1}}, "data", "problem", "fit refuses a run of unknown length"),
        (
            {"model": {"init_args": {"dim": 100_000, "n_layer": 100}}},
            "model",
            "problem",
            "12,000,",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_config(trained: Path, tmp_path: Path, change: dict[str, Any], check: str, level: str, said: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/file.txt").write_text("not a folder")
    write_config(tmp_path / "change.yaml", change)
    found = doctor("--offline", "--config", str(trained / "tiny.yaml"), "--config", "change.yaml", cwd=tmp_path)
    wrong = [(level, text) for level, text, _ in found[check] if level != "ok"]
    assert len(wrong) == 1
    assert wrong[0][0] == level
    assert wrong[0][1].startswith(said), wrong


def test_a_model_that_does_not_fit_is_measured_exactly(trained: Path, tmp_path: Path) -> None:
    """Weights, gradients and AdamW's two moments in four bytes each; Muon has one moment per weight of a matrix."""
    sizes = {}
    for optimizer in ("adamw", "muon"):
        for precision, width in (("32-true", 4), ("bf16-true", 2)):
            large = {"dim": 20_480, "n_layer": 100, "optimization": {"optimizer": optimizer}}
            write_config(tmp_path / "large.yaml", {"model": {"init_args": large}, "trainer": {"precision": precision}})
            call = ("--offline", "--config", str(trained / "tiny.yaml"), "--config", "large.yaml")
            ((level, text, _),) = doctor(*call, cwd=tmp_path)["model"]
            assert level == "problem"
            assert text.endswith("it does not fit")
            parameters, needed = text.split()[0], text.split("; ")[1].split()[0]
            sizes[optimizer, width] = float(needed.replace(",", "")) * 2**30 / int(parameters.replace(",", "")) / width
    assert sizes["adamw", 4] == pytest.approx(4, rel=1e-3)
    assert sizes["adamw", 2] == pytest.approx(4, rel=1e-3)
    assert sizes["muon", 4] == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize(
    ("parallel", "whole"), [({}, 2), ({"shard": 2}, 1), ({"tensor": 2}, None)], ids=["copies", "shard", "tensor"]
)
def test_processes_that_share_a_machine_are_counted_as_they_share_the_weights(
    trained: Path, tmp_path: Path, parallel: dict[str, int], whole: int | None
) -> None:
    large = {"dim": 20_480, "n_layer": 100, "n_head": 4}
    change = {"model": {"init_args": large}, "trainer": {"accelerator": "cpu", "devices": 2}, "parallel": parallel}
    write_config(tmp_path / "large.yaml", change)
    call = ("--offline", "--config", str(trained / "tiny.yaml"), "--config", "large.yaml")
    ((level, text, remedy),) = doctor(*call, cwd=tmp_path)["model"]
    assert level == "problem"
    assert " GiB for weights, gradients and optimizer of 2 processes, of " in text
    assert remedy.endswith("(--parallel.shard)")
    parameters, needed = (float(text.split("; ")[part].split()[0].replace(",", "")) for part in (0, 1))
    copies = needed * 2**30 / parameters / 16
    if whole is None:
        assert 1 < copies < 1.01  # norms are in both
    else:
        assert copies == pytest.approx(whole, rel=1e-3)


def test_a_bad_checkpoint(trained: Path, tmp_path: Path) -> None:
    good = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    flipped, text, nan = tmp_path / "flipped.ckpt", tmp_path / "text.ckpt", tmp_path / "nan.ckpt"
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 64
    flipped.write_bytes(content)
    text.write_text("not a checkpoint")
    saved = torch.load(good, weights_only=True)
    saved["state_dict"]["model.final_norm.weight"][0] = float("nan")
    write_checkpoint(saved, nan)
    again = "use another checkpoint, or copy it again from where it was written"
    for file, said, remedy in (
        (tmp_path / "none.ckpt", f"checkpoint '{tmp_path / 'none.ckpt'}' does not exist", again),
        (flipped, "is corrupt: its checksum is wrong", again),
        (text, "is not a checkpoint of PyTorch", again),
        (nan, "model.final_norm.weight has values that are not finite", "use a checkpoint of an earlier step"),
    ):
        found = doctor("--offline", "--checkpoint", str(file), cwd=tmp_path)["checkpoint"]
        level, found_text, found_remedy = found[-1]
        assert (level, found_remedy) == ("problem", remedy)
        assert said in found_text

    write_config(tmp_path / "wider.yaml", {"model": {"init_args": {"dim": 64}}})
    configs = ("--config", str(trained / "tiny.yaml"), "--config", "wider.yaml")
    found = doctor("--offline", *configs, "--checkpoint", str(good), cwd=tmp_path)["checkpoint"]
    assert found[-1][0] == "problem"
    assert "has a different architecture: dim is 32 there and 64 here" in found[-1][1]


def test_help(place: Path) -> None:
    text = must_run("doctor", "--help", cwd=place, env={"COLUMNS": "80"}).stdout
    for option in ("--config FILE", "--checkpoint FILE", "--json", "--offline"):
        assert option in text
    assert max(map(len, text.splitlines())) <= 80


def test_it_can_be_stopped_by_a_reader_that_ends(place: Path) -> None:
    done = subprocess.run(
        f"{WITHOUT_PACKAGES} doctor --offline | head -1",
        shell=True,
        cwd=place,
        env=environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("problem  python")
    assert done.stderr == ""
