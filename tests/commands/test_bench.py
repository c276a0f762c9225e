"""``lightning-gpt bench`` as a real process: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest

from lightning_gpt.commands.bench import run
from lightning_gpt.errors import CallError
from tests.benchmarks.stand_in import NANO_GPT
from tests.processes import must_run, run_command

SMALL = (
    *("--quick", "true", "--workload.dim", "16", "--workload.n_head", "2", "--workload.vocab_size", "300"),
    *("--workload.time", "32", "--workload.batch", "2", "--workload.depths", "[1,2,3]"),
)


def test_a_run_prints_each_row_and_writes_the_table(tmp_path: Path) -> None:
    (tmp_path / "clones/nanoGPT").mkdir(parents=True)
    (tmp_path / "clones/nanoGPT/model.py").write_text(NANO_GPT)
    flags = ("--peer_dir", "clones", "--rows", "step,depth", "--threads", "1", "--profile", "true")
    done = must_run("bench", *SMALL, *flags, cwd=tmp_path, fresh=True)
    lines = done.stdout.splitlines()
    assert "threads: 1" in lines
    assert "rounds: 2" in lines
    assert any(
        text.startswith("step: fp32, L = 2, vs. nanoGPT: ") and "target at least 1.8 x" in text for text in lines
    )
    assert any(text.startswith("step: vs. minGPT: skipped, clones/minGPT") for text in lines)
    assert any("_LinearCrossEntropy" in text for text in lines), "the profile's table"
    content = json.loads((tmp_path / "bench/bench.json").read_text())
    assert {row["row"] for row in content["rows"]} == {"step", "depth"}
    assert content["machine"]["threads"] == 1
    assert "| depth | step time by depth" in (tmp_path / "bench/bench.md").read_text()
    assert json.loads((tmp_path / "bench/trace-fp32.json").read_text())["traceEvents"]
    assert (tmp_path / "bench/profile-fp32.txt").stat().st_size > 0


def test_a_wrong_row_is_one_line(tmp_path: Path) -> None:
    done = run_command("bench", "--rows", "stepp", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rows has 'stepp'; allowed: step, step_bf16, ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", "0"), "threads is 0; it must be a whole number from 1 to 1,024"),
        (("--rounds", "0"), "rounds is 0; it must be a whole number from 1 to 1,000"),
        (("--workload.depths", "[4,0]"), r"workload.depths is \[4, 0\]; it must be a list, each entry a whole number"),
        (("--peer_dir", "/nowhere"), "peer_dir is '/nowhere', which is not a folder"),
        (("--litgpt_python", "/nowhere"), "litgpt_python is '/nowhere', which is not a file"),
        (("--quick", "true", "--rounds", "9"), "rounds 9 changes nothing with quick: leave one of them out"),
        (("--rows", "help,step, help"), "rows has help twice: leave one of them out"),
        (("--output", ""), "output is ''; it must be the name of a folder"),
        (("--rows", "help", "--output", "/dev/null"), "output '/dev/null' cannot be used as a folder: File exists"),
        (("--device", "cuda"), "device is 'cuda', but torch finds no CUDA device"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_measured(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CallError, match=message):
        run(list(options))
