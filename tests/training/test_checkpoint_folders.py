"""Checkpoint folders: read as files are, whole or not at all, under the same names."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_gpt import load
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.checkpoint_folder import (
    INDEX,
    Box,
    Saved,
    StoredTensor,
    new_file_names,
    read_saved,
    tensors_of,
    without_tensors,
    write_index,
    write_pieces,
)
from lightning_gpt.consolidated import consolidate, from_consolidated
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.whole_file import keep_previous, previous_of
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config
from tests.training.runs import assert_same_series

STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, val_check_interval=6)
    content |= {"averaging": {"decay": 0.9}, "diagnostics": {"enabled": False}}
    return write_config(folder / "tiny.yaml", content)


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run that is left alone: its checkpoints are of steps 12 and 10."""
    must_run("fit", "--config", str(config), cwd=config.parent)
    return config.parent / "runs/tiny/version_0"


def divided(content: dict[str, Any], folder: Path, processes: int = 2) -> Path:
    """Write a checkpoint as a folder, each tensor cut along its first dimension into one piece for each process."""
    files = new_file_names(processes)
    pieces: list[dict[str, dict[Box, torch.Tensor]]] = [{} for _ in files]
    tensors = {}
    for key, tensor in tensors_of(content):
        boxes, begin = {}, 0
        for number, part in enumerate(tensor.chunk(processes) if tensor.dim() else [tensor]):
            box = (begin, *(0,) * (tensor.dim() - 1))[: tensor.dim()], tuple(part.shape)
            pieces[number].setdefault(key, {})[box] = part
            boxes[box] = files[number]
            begin += len(part) if part.dim() else 0
        tensors[key] = StoredTensor(tuple(tensor.shape), tensor.dtype, boxes)
    folder.mkdir(exist_ok=True)
    sums = {file: write_pieces(each, folder / file) for file, each in zip(files, pieces, strict=True)}
    write_index(folder, without_tensors(content), tensors, sums)
    return folder


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    return divided(read_checkpoint(alone / "checkpoints/last.ckpt"), tmp_path / "folder.ckpt")


def assert_equal(ours: object, theirs: object) -> None:
    """Two checkpoints are the same to the bit."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs)
        for each, other in zip(ours, theirs, strict=True):
            assert_equal(each, other)
    elif isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("mmap", [True, False])
def test_a_folder_holds_what_the_file_holds(mmap: bool, folder: Path, alone: Path) -> None:
    content = read_checkpoint(alone / "checkpoints/last.ckpt")
    assert set(content) >= {"state_dict", "current_model_state", "optimizer_states", "TextData"}
    assert_equal(read_saved(folder, mmap), content)
    assert_equal(Saved(alone / "checkpoints/last.ckpt").whole(), content)
    assert len(list(folder.iterdir())) == 3


def test_optimizer_state_is_by_name(alone: Path) -> None:
    content = read_checkpoint(alone / "checkpoints/last.ckpt")
    optimizer = content["optimizer_states"][0]
    assert set(optimizer["state"]) == set(content["current_model_state"])
    assert {name for group in optimizer["param_groups"] for name in group["params"]} == set(optimizer["state"])


def test_each_command_reads_a_folder_as_it_reads_the_file(folder: Path, config: Path, alone: Path) -> None:
    file = str(alone / "checkpoints/last.ckpt")
    cwd = folder.parent
    for args in (
        ("generate", "--max_new_tokens", "5", "--strategy", "greedy", "--checkpoint"),
        ("validate", "--config", str(config), "--ckpt_path"),
        ("test", "--config", str(config), "--ckpt_path"),
    ):
        ours, theirs = must_run(*args, str(folder), cwd=cwd), must_run(*args, file, cwd=cwd)
        assert ours.stdout == theirs.stdout
        assert ours.stdout.strip()
    page = cwd / "page.html"
    must_run("inspect", "--checkpoint", str(folder), "--text", "abc", "--output", str(page), cwd=cwd)
    done = must_run("doctor", "--offline", "--checkpoint", str(folder), cwd=cwd, env={"COLUMNS": "300"})
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert f"whole ({size:,} bytes checked); gpt, step {STEPS}" in " ".join(done.stdout.split())


def test_a_run_resumes_from_a_folder_to_the_same_end(config: Path, alone: Path, tmp_path: Path) -> None:
    before = read_checkpoint(previous_of(alone / "checkpoints/last.ckpt"))
    assert before["global_step"] == 10
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    shutil.copy(alone / "metrics.jsonl", tmp_path / "run")
    divided(before, last)
    must_run("fit", "--config", str(config), "--ckpt_path", str(last), cwd=tmp_path)
    run = tmp_path / "runs/tiny/version_0"
    assert_same_series(run, alone)
    ours, theirs = (read_checkpoint(each / "checkpoints/last.ckpt") for each in (run, alone))
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(ours[part], theirs[part])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x08
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("which", ["index", "0", "1"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, r"\([\d,]+ bytes\) is corrupt: its checksum is wrong; copy it again, or use another one"),
        (_cut, r"\([\d,]+ bytes\) is truncated: its end is missing; copy it again, or use another one"),
    ],
    ids=["flipped", "cut"],
)
def test_a_damaged_folder_is_refused(which: str, damage: Callable[[Path], None], said: str, folder: Path) -> None:
    file = next(folder.glob("index.ckpt" if which == "index" else f"*-{which}.ckpt"))
    damage(file)
    with pytest.raises(CallError, match=rf"^checkpoint '.*folder.ckpt/{file.name}' {said}$"):
        load(folder)


@pytest.mark.parametrize(
    ("which", "lacks"),
    [
        (["index"], "its index, index.ckpt"),
        (["1"], r"1 of its 2 files of tensors: \w{8}-1.ckpt"),
        (["0", "1"], r"2 of its 2 files of tensors: \w{8}-0.ckpt, \w{8}-1.ckpt"),
    ],
    ids=["index", "a file", "files"],
)
def test_what_a_folder_lacks_is_named(which: list[str], lacks: str, folder: Path) -> None:
    for each in which:
        next(folder.glob("index.ckpt" if each == "index" else f"*-{each}.ckpt")).unlink()
    advice = "copy it again, or use another one"
    with pytest.raises(CallError, match=rf"^checkpoint '.*folder.ckpt' is incomplete: it lacks {lacks}; {advice}$"):
        load(folder)


def test_a_damaged_folder_names_the_one_before_it_and_a_run_falls_back(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    last = divided(read_checkpoint(previous_of(alone / "checkpoints/last.ckpt")), tmp_path / "last.ckpt")
    keep_previous(last)
    divided(read_checkpoint(alone / "checkpoints/last.ckpt"), last, 3)
    assert len(list(last.iterdir())) == 4, "the files of the save before are removed"
    assert [read_saved(each)["global_step"] for each in (last, previous_of(last))] == [12, 10]
    _flip(next(last.glob("*-2.ckpt")))
    with pytest.raises(CallError, match=r"is corrupt: its checksum is wrong; use the one before it, '.*previous.ckpt'"):
        load(last)
    done = must_run("fit", "--config", str(config), "--ckpt_path", str(last), cwd=tmp_path)
    assert "resuming from the one before it, of step 10" in done.stderr
    keep_previous(last)
    assert len(list(previous_of(last).iterdir())) == 4


def test_a_file_of_another_save_is_refused(folder: Path, alone: Path, tmp_path: Path) -> None:
    other = divided(read_checkpoint(previous_of(alone / "checkpoints/last.ckpt")), tmp_path / "other.ckpt")
    shutil.copy(next(other.glob("*-1.ckpt")), next(folder.glob("*-1.ckpt")))
    with pytest.raises(CallError, match=r"folder.ckpt': its file \w+-1.ckpt is of another save"):
        load(folder)


def _outside(tensors: dict[str, Any], files: dict[str, str]) -> None:
    shape, _, pieces = next(iter(tensors.values()))
    pieces[0][0] = (10**6,) * len(shape)


def _missing_piece(tensors: dict[str, Any], files: dict[str, str]) -> None:
    next(each for each in tensors.values() if len(each[2]) > 1)[2].pop()


def _elsewhere(tensors: dict[str, Any], files: dict[str, str]) -> None:
    for each in tensors.values():
        for piece in each[2]:
            piece[2] = "../x.ckpt"
    files["../x.ckpt"] = ""


def _unknown_part(tensors: dict[str, Any], files: dict[str, str]) -> None:
    tensors["elsewhere|x"] = next(iter(tensors.values()))


def _wrong_type(tensors: dict[str, Any], files: dict[str, str]) -> None:
    next(iter(tensors.values()))[1] = "save"


def _no_list(tensors: dict[str, Any], files: dict[str, str]) -> None:
    tensors["state_dict|x"] = 3


def _no_such_box(tensors: dict[str, Any], files: dict[str, str]) -> None:
    shape, _, pieces = next(each for each in tensors.values() if len(each[0]) == 2)
    pieces[:] = [[[0, 0], shape, pieces[0][2]]]


@pytest.mark.parametrize(
    "change", [_outside, _missing_piece, _elsewhere, _unknown_part, _wrong_type, _no_list, _no_such_box]
)
def test_an_index_that_describes_something_else_is_refused(
    change: Callable[[dict[str, Any], dict[str, str]], None], folder: Path
) -> None:
    content = read_checkpoint(folder / INDEX, mmap=False)
    change(content["lightning_gpt_tensors"], content["lightning_gpt_files"])
    write_checkpoint(content, folder / INDEX)
    with pytest.raises(CallError, match=r"folder.ckpt' was not written by lightning-gpt fit$"):
        load(folder)


def test_no_code_in_a_folder_is_run(folder: Path) -> None:
    for file in folder.iterdir():
        kept = file.read_bytes()
        torch.save({"path": Path("x")}, file)
        with pytest.raises(CallError, match="holds Python objects; only tensors, numbers and text are loaded"):
            load(folder)
        file.write_bytes(kept)


def test_all_weights_that_differ_are_named(folder: Path, config: Path, alone: Path) -> None:
    """In a model that has them, and in one that is to be resumed."""
    content = read_saved(folder, mmap=False)
    state = content["state_dict"]
    for layer in (0, 1):
        del state[f"model.blocks.{layer}.attention.qkv.weight"]
    state["model.x"] = torch.zeros(1)
    name = next(name for name in state if "norm" in name)
    state[name] = torch.zeros(3)
    said = (
        r"missing: blocks.0–1.attention.qkv.weight; not expected: x; "
        rf"of shape \(3\) and not \(32\): {re.escape(name.removeprefix('model.'))}$"
    )
    divided(content, folder)
    with pytest.raises(CallError, match=rf"has different weights from the model that it describes: {said}"):
        load(folder)
    whole = load(alone / "checkpoints/last.ckpt")
    with pytest.raises(CallError, match=rf"has different weights from this model: {said}"):
        Checkpoint.read(folder).require_same_model(whole)
    done = run_command("fit", "--config", str(config), "--ckpt_path", str(folder), cwd=folder.parent)
    assert done.returncode == 2
    assert "has different weights from this model: missing: blocks.0–1.attention.qkv" in done.stderr.splitlines()[-1]


def test_a_file_takes_the_place_of_a_folder(folder: Path) -> None:
    """A run that continues in another layout saves under the name that the folder has."""
    content = read_saved(folder, mmap=False)
    CheckedFiles().save_checkpoint({**content, "global_step": 13}, folder)
    assert folder.is_file()
    assert [read_saved(each)["global_step"] for each in (folder, previous_of(folder))] == [13, 12]
    CheckedFiles().remove_checkpoint(previous_of(folder))
    assert not previous_of(folder).exists()


@pytest.fixture(scope="module")
def consolidated(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole checkpoint as one safetensors file."""
    folder = tmp_path_factory.mktemp("consolidated")
    written = divided(read_checkpoint(alone / "checkpoints/last.ckpt"), folder / "folder.ckpt")
    consolidate(written, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_one_file_holds_all_of_a_folder_to_the_bit(consolidated: Path, alone: Path, tmp_path: Path) -> None:
    """Back it is the same checkpoint, and once more the same file; so it is from the file of one process."""
    content = read_checkpoint(alone / "checkpoints/last.ckpt")
    back = tmp_path / "back.ckpt"
    from_consolidated(consolidated, back)
    assert_equal(read_saved(back), content)
    assert load(back).state_dict().keys() == load(alone / "checkpoints/last.ckpt").state_dict().keys()
    for source in (back, alone / "checkpoints/last.ckpt"):
        consolidate(source, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == consolidated.read_bytes()
    from_consolidated(consolidated, back)
    assert len(list(back.iterdir())) == 2, "the file of the save before is removed"


def test_others_read_the_weights_by_their_names(consolidated: Path, alone: Path) -> None:
    with safe_open(consolidated, framework="pt") as file:
        config = json.loads(file.metadata()["lightning_gpt"])["content"]["lightning_gpt_model"]
        for name, weight in read_checkpoint(alone / "checkpoints/last.ckpt")["state_dict"].items():
            assert torch.equal(file.get_tensor(name), weight)
    assert "gpt" in str(config)


def test_values_that_json_lacks_come_back(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    content = {
        "state_dict": {"a": weight, "b": weight, "c": weight.T, "half": weight.bfloat16(), "scalar": weight[0, 0]},
        "n": [float("inf"), 0.1, (1, ("x",), None, True), {0: "zero", "tensor": weight[:, 1], "": {}}],
    }
    write_checkpoint(content, tmp_path / "a.ckpt")
    consolidate(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    from_consolidated(tmp_path / "a.safetensors", tmp_path / "back.ckpt")
    assert_equal(read_saved(tmp_path / "back.ckpt"), content)


def test_every_change_of_a_consolidated_file_is_found(consolidated: Path, tmp_path: Path) -> None:
    changed, content = tmp_path / "changed.safetensors", consolidated.read_bytes()
    for place in [*range(8), *range(8, len(content), len(content) // 200), len(content) - 1]:
        changed.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CallError, match=r"is corrupt|truncated or corrupt|was not written by"):
            from_consolidated(changed, tmp_path / "back.ckpt")
    changed.write_bytes(content[:-1])
    with pytest.raises(CallError, match="truncated or corrupt"):
        from_consolidated(changed, tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()


def test_what_cannot_be_consolidated_is_refused(consolidated: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="does not exist, or is not a file"):
        from_consolidated(tmp_path / "none.safetensors", tmp_path / "back.ckpt")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CallError, match="was not written by lightning-gpt convert --consolidate"):
        from_consolidated(tmp_path / "foreign.safetensors", tmp_path / "back.ckpt")
    with pytest.raises(CallError, match="exists and is not a checkpoint folder"):
        from_consolidated(consolidated, consolidated.parent)
    with pytest.raises(CallError, match="is a folder; name the file to be written"):
        consolidate(consolidated.parent / "folder.ckpt", tmp_path)
    write_checkpoint({"state_dict": {}, "x": {"y": b"bytes"}}, tmp_path / "bytes.ckpt")
    with pytest.raises(CallError, match="holds a bytes in /x/y, which is not data"):
        consolidate(tmp_path / "bytes.ckpt", tmp_path / "x.safetensors")
    with pytest.raises(WorkError, match="cannot be written"):
        consolidate(consolidated.parent / "folder.ckpt", consolidated / "x.safetensors")
    assert not list(tmp_path.glob("*.tmp"))
