"""Checkpoint files: written whole or not at all, checked when they are read, and the one before as a reserve."""

import io
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_gpt import checkpoint_file, load
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.errors import CallError
from lightning_gpt.whole_file import keep_previous, previous_of
from tests.processes import must_run, run_command, run_forked, start_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import assert_same_series, weights

STEPS = 40
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS)
    content["model"]["init_args"] |= {"dim": 128, "n_layer": 4}  # 10 MB with AdamW's moments: a save takes a while
    content |= {"checkpoints": {"every_n_steps": 2}, "diagnostics": {"enabled": False}}
    return write_config(folder / "tiny.yaml", content)


@pytest.fixture(scope="module")
def saved(alone: Path) -> bytes:
    return (alone / "checkpoints/last.ckpt").read_bytes()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the one for temporary files."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("this machine has no second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def test_killed_inside_saves_on_another_file_system(elsewhere: Path) -> None:
    """A kill at any moment leaves two whole checkpoints, and the next save removes what it left beside them."""
    chance, path, left = random.Random(0), elsewhere / "last.ckpt", 0
    number = -1
    for _ in range(8):
        with pytest.raises(subprocess.TimeoutExpired):
            run_forked("tests.training.save_forever", str(path), cwd=elsewhere, timeout=0.3 + chance.uniform(0, 0.2))
        content, before = read_checkpoint(path), read_checkpoint(previous_of(path))
        number = content["number"]
        assert before["number"] in (number, number - 1)
        assert all(bool((each["tensor"] == each["number"]).all()) for each in (content, before))
        left += len(temporary_files(elsewhere))
    assert left, "no kill fell inside a save"
    write_checkpoint({"number": 0}, path)
    assert temporary_files(elsewhere) == []


def test_a_run_killed_inside_a_save_resumes_to_the_same_end(config: Path, alone: Path, elsewhere: Path) -> None:
    first = elsewhere / "runs/tiny/version_0"
    folder = first / "checkpoints"
    process = start_command("fit", "--config", str(config), cwd=elsewhere)
    end = time.monotonic() + 180
    while not (folder / "last.previous.ckpt").exists() or not any(folder.glob("last.ckpt.*.tmp")):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, "no save was seen"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    read_checkpoint(folder / "last.ckpt")

    must_run("fit", "--ckpt_path", str(folder / "last.ckpt"), cwd=elsewhere)

    second = elsewhere / "runs/tiny/version_1"
    assert temporary_files(elsewhere) == []
    assert_same_series(second, alone)
    ours, theirs = weights(second), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_full_disk_ends_in_a_line_and_keeps_what_was_saved(config: Path, small_disk: Path) -> None:
    """Two checkpoints fit, and best.ckpt is the third."""
    done = run_command("fit", "--config", str(config), cwd=small_disk)
    assert done.returncode == 1, done.stderr
    assert re.search(r"error: checkpoint '.*ckpt' cannot be written: No space left", done.stderr.splitlines()[-1])
    folder = small_disk / "runs/tiny/version_0/checkpoints"
    assert temporary_files(small_disk) == []
    for path in folder.iterdir():
        read_checkpoint(path)
    assert (folder / "last.ckpt").exists()


def test_a_disk_that_returns_something_else_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"number": 1}, path)
    whole = checkpoint_file.os.fsync

    def damaging(descriptor: int) -> None:
        whole(descriptor)
        for temporary in tmp_path.glob("*.tmp"):
            damage(temporary, 100, bytes(8))

    monkeypatch.setattr(checkpoint_file.os, "fsync", damaging)
    with pytest.raises(Exception, match="the disk does not return what was written to it; the old file is kept"):
        write_checkpoint({"number": 2}, path)
    monkeypatch.undo()
    assert read_checkpoint(path)["number"] == 1
    assert temporary_files(tmp_path) == []


def damage(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flipped_exponents(saved: bytes, path: Path, count: int) -> list[bytes]:
    """Copies of a checkpoint, each with one bit flipped in the exponent of one weight of another tensor."""
    path.write_bytes(saved)
    state, copies = torch.load(path, weights_only=True)["state_dict"], []
    for name in list(state)[:count]:
        where = saved.index(state[name].contiguous().numpy().tobytes()[:64]) + 3  # the byte with most of the exponent
        copy = bytearray(saved)
        copy[where] ^= 0x08
        copies.append(bytes(copy))
    return copies


def test_every_flipped_bit_is_found(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    copies = flipped_exponents(saved, path, 14)
    chance = random.Random(0)
    for _ in range(100):
        copy = bytearray(saved)
        copy[chance.randrange(len(copy) - 60)] ^= 1 << chance.randrange(8)
        copies.append(bytes(copy))
    for copy in copies:
        path.write_bytes(copy)
        with pytest.raises(CallError, match="is corrupt: its checksum is wrong; copy it again, or use another one"):
            load(path)


@pytest.mark.parametrize("damaged", ["exponent", "zeroed block"])
@pytest.mark.parametrize(
    "call",
    [
        ("generate", "--checkpoint", "bad.ckpt"),
        ("generate", "--checkpoint", "good.ckpt", "--draft", "bad.ckpt"),
        ("inspect", "--checkpoint", "bad.ckpt", "--text", "abc"),
        ("validate", "--config", "tiny.yaml", "--ckpt_path", "bad.ckpt"),
        ("test", "--config", "tiny.yaml", "--ckpt_path", "bad.ckpt"),
        ("fit", "--config", "tiny.yaml", "--ckpt_path", "bad.ckpt"),
        ("fit", "--config", "tiny.yaml", "--grow.checkpoint", "bad.ckpt"),
    ],
    ids=" ".join,
)
def test_every_reader_refuses_a_corrupt_checkpoint(
    call: tuple[str, ...], damaged: str, saved: bytes, config: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.ckpt"
    if damaged == "exponent":
        bad.write_bytes(flipped_exponents(saved, bad, 1)[0])
    else:
        bad.write_bytes(saved)
        damage(bad, len(saved) // 2 // 4096 * 4096, bytes(4096))
    (tmp_path / "good.ckpt").write_bytes(saved)
    shutil.copy(config, tmp_path / "tiny.yaml")
    done = run_command(*call, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    said = r"error: checkpoint 'bad.ckpt' \([\d,]+ bytes\) is corrupt: its checksum is wrong; copy it again, or .*"
    assert re.fullmatch(said, done.stderr.splitlines()[-1]), done.stderr


def test_a_checkpoint_without_a_checksum_is_checked_by_its_crcs(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    path.write_bytes(saved)
    torch.save(torch.load(path, weights_only=True), path)
    load(path)
    old = path.read_bytes()
    for copy in flipped_exponents(old, path, 14):
        path.write_bytes(copy)
        with pytest.raises(CallError, match=r"is corrupt: the CRC-32 of its entry old/data/\d+ is wrong"):
            load(path)


def test_other_programs_read_the_file(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(saved)
    assert torch.load(path, weights_only=True, mmap=True)["global_step"] == STEPS


def _zip_of_text(_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "b")
    return buffer.getvalue()


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _list(_: bytes) -> bytes:
    return _saved([1, 2])


def _other(_: bytes) -> bytes:
    return _saved({"weights": torch.zeros(3)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"\(0 bytes\) is empty"),
        (_zip_of_text, r"'.*x.ckpt' is not a checkpoint of PyTorch"),
        (_list, r"'.*x.ckpt' was not written by lightning-gpt fit"),
        (_other, r"'.*x.ckpt' was not written by lightning-gpt fit"),
        (b"text", "is not a checkpoint of PyTorch"),
        (lambda saved: saved[:50_000], r"\(50,000 bytes\) is truncated"),
        (lambda saved: saved[:-1], "is truncated"),
        (lambda saved: saved[:-4096] + bytes(4096), "is truncated"),
    ],
)
def test_each_way_of_being_no_checkpoint_is_named(content: object, said: str, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content(saved) if callable(content) else content)
    with pytest.raises(CallError, match=said):
        load(path)


def test_an_unreadable_checkpoint_is_not_called_truncated(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"'/proc/self/mem' cannot be read: [A-Z]"):
        load("/proc/self/mem")
    with pytest.raises(CallError, match="is a folder; name a file in it"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(CallError, match=r"pipe.ckpt' is not a regular file"):
        load(tmp_path / "pipe.ckpt")
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    with pytest.raises(CallError, match=r"loop.ckpt' cannot be read: Too many levels of symbolic links"):
        load(tmp_path / "loop.ckpt")
    with pytest.raises(CallError, match=r"cannot be read: File name too long"):
        load("x" * 300)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_checkpoint_without_permission_is_named_as_such() -> None:
    """Also in a folder that may not be entered, where it cannot be known whether it exists."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        for path in (folder / "file/x.ckpt", folder / "closed/x.ckpt"):
            path.parent.mkdir()
            path.touch()
        (folder / "file/x.ckpt").chmod(0)
        (folder / "closed").chmod(0)
        os.seteuid(65534)
        try:
            for closed in ("file", "closed"):
                with pytest.raises(CallError, match=rf"{closed}/x.ckpt' cannot be read: Permission denied"):
                    load(folder / closed / "x.ckpt")
        finally:
            os.seteuid(0)


def test_code_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"path": Path("x")}, path)
    with pytest.raises(CallError, match="holds Python objects; only tensors, numbers and text are loaded"):
        load(path)


@pytest.mark.parametrize("broken", ["corrupt", "truncated", "missing"])
def test_a_broken_last_checkpoint_falls_back_to_the_one_before(
    broken: str, config: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    before = torch.load(previous_of(last), weights_only=True)["global_step"]
    if broken == "corrupt":
        damage(last, 100_000, bytes(4096))
    elif broken == "truncated":
        last.write_bytes(last.read_bytes()[:100_000])
    else:
        last.unlink()

    done = must_run("fit", "--config", str(config), "--ckpt_path", str(last), cwd=tmp_path)

    assert re.search(rf"resuming from the one before it, of step {before}: .*last.previous.ckpt", done.stderr)
    assert "changed options" not in done.stderr
    run = tmp_path / "runs/tiny/version_0"
    assert str(previous_of(last)) in (run / "config.yaml").read_text()
    assert_same_series(run, alone)
    ours, theirs = weights(run), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if broken != "missing":
        refused = run_command("generate", "--checkpoint", str(last), cwd=tmp_path)
        assert re.search("use the one before it, '.*last.previous.ckpt'", refused.stderr), refused.stderr


def test_a_run_that_is_started_again_keeps_its_only_whole_checkpoint(config: Path, tmp_path: Path) -> None:
    """The first save after a broken one does not put the broken one in the place of the one before."""
    job = {"SLURM_JOB_ID": "7"}
    must_run("fit", "--config", str(config), "--trainer.max_steps", "4", cwd=tmp_path, env=job)
    last = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    before = read_checkpoint(previous_of(last))["global_step"]
    damage(last, 100_000, bytes(4096))
    again = ("--trainer.max_steps", "4", "--checkpoints.every_n_steps", "100")  # one save, at the end
    done = must_run("fit", "--config", str(config), *again, cwd=tmp_path, env={**job, "SLURM_RESTART_COUNT": "1"})
    assert f"resuming from the one before it, of step {before}" in done.stderr
    assert [read_checkpoint(path)["global_step"] for path in (previous_of(last), last)] == [before, 4]


def test_keep_1_keeps_one(config: Path, tmp_path: Path) -> None:
    must_run("fit", "--config", str(config), "--checkpoints.keep", "1", "--trainer.max_steps", "4", cwd=tmp_path)
    names = {path.name for path in (tmp_path / "runs/tiny/version_0/checkpoints").iterdir()}
    assert names == {"last.ckpt"}
    done = run_command("fit", "--config", str(config), "--checkpoints.keep", "3", cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "error: checkpoints.keep is 3; it must be a whole number from 1 to 2"


def test_a_file_system_without_hard_links_keeps_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refused)
    path = tmp_path / "last.ckpt"
    for number in range(3):
        keep_previous(path)
        write_checkpoint({"number": number}, path)
    assert [read_checkpoint(each)["number"] for each in (path, previous_of(path))] == [2, 1]
    assert temporary_files(tmp_path) == []
