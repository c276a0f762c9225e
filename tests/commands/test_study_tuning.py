"""A study with a first stage as it is typed: real trials, and the cells that use what they chose."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.commands import study as command
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.models import GPT, GPTConfig
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config
from tests.studies.helpers import LAYERS

RATE = "model.init_args.optimization.lr"
CALL = ("study", "--config", "tuned.yaml", "--folder", "out")


def write_study(folder: Path, **over: Any) -> None:
    """A study of two depths whose rate is chosen from two, of which one trains nothing."""
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=10, val_check_interval=5)
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    del config["name"], config["seed_everything"]
    tune = {"key": RATE, "values": [1.0e-9, 1.0e-2], "budget": 8}
    content = {"name": "tuned", "config": config, "grid": {LAYERS: [1, 2]}, "tune": tune, "measure": ["val/loss"]}
    write_config(folder / "tuned.yaml", content | over)


def done_cells(folder: Path) -> list[Path]:
    return sorted(folder.glob("cells/*/result.json"))


def test_rates_are_chosen_in_a_stage_that_resumes_and_cells_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkError, match="4 of 4 trials of lr are still to be run"):
        command.run(["--config", "tuned.yaml", "--folder", "out", "--cell", "0"])
    script = must_run(*CALL, "--slurm", "--tuning", cwd=tmp_path).stdout
    assert "# 4 cells of the study tuned-tuning." in script
    assert script.splitlines()[4].endswith("--slurm true"), "after the trials comes the script of the cells"
    line = next(line for line in script.splitlines() if line.startswith("exec "))
    job = shlex.split(line)
    assert job[-4:] == ["--tuning", "true", "--cell", "$SLURM_ARRAY_TASK_ID"]
    must_run(*job[job.index("study") : -1], "1", cwd=tmp_path)
    trials = tmp_path / "out/tuning"
    (first,) = done_cells(trials)
    before = first.stat().st_mtime_ns

    said = must_run(*CALL, cwd=tmp_path, timeout=600).stderr
    assert "tuned-tuning: 4 cells, 1 already done" in said
    assert "tuned: 2 cells, 0 already done" in said
    assert first.stat().st_mtime_ns == before
    tried = json.loads((trials / "results.json").read_text())["cells"]
    assert [[step for step, _ in each["curves"]["val/loss"]] for each in tried] == [[8]] * 4
    assert [each["neighbours"] for each in tried] == [0, None, 0, 0], "the array's other jobs may have run beside it"
    losses = {(each["settings"][LAYERS], each["settings"][RATE]): each["values"]["val/loss"] for each in tried}
    cells = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert len(cells) == 2
    for cell in cells:
        depth, rate = cell["settings"][LAYERS], cell["config"]["model"]["init_args"]["optimization"]["lr"]
        assert rate == min((1.0e-9, 1.0e-2), key=lambda each: losses[depth, each]) == 1.0e-2
        assert [step for step, _ in cell["curves"]["val/loss"]] == [5, 10]
    report = (tmp_path / "out/report.md").read_text()
    assert "How lr was chosen" in report
    assert "lies at the highest edge of what was tried" in report
    assert len(list((tmp_path / "out/vocabularies").iterdir())) == 1, "trials and cells share a vocabulary"


def test_successive_halving_stops_hopeless_rates_and_resumes(tmp_path: Path) -> None:
    tune = {"key": RATE, "values": [1.0e-9, 1.0e-3, 1.0e-2, 1.0e-8], "budget": 8, "halving": 2}
    write_study(tmp_path, tune=tune, grid={LAYERS: [1]})
    said = must_run(*CALL, cwd=tmp_path, timeout=600).stderr
    assert "tuned-tuning: 4 cells, 0 already done" in said
    assert "tuned-tuning-2: 2 cells, 0 already done" in said
    trials = {path: json.loads(path.read_text()) for path in done_cells(tmp_path / "out/tuning")}
    ran = sorted((each["config"]["trainer"]["max_steps"], each["settings"][RATE]) for each in trials.values())
    assert ran == [(4, 1.0e-9), (4, 1.0e-8), (4, 1.0e-3), (4, 1.0e-2), (8, 1.0e-3), (8, 1.0e-2)]
    report = (tmp_path / "out/report.md").read_text()
    assert "the best 2 anew for 8 (successive halving)" in report
    assert report.count(" after 4 |") == 2

    lost = next(path for path, each in trials.items() if each["config"]["trainer"]["max_steps"] == 8)
    shutil.rmtree(lost.parent)
    said = must_run(*CALL, cwd=tmp_path, timeout=600).stderr
    assert "tuned-tuning: 4 cells, 4 already done" in said
    assert "tuned-tuning-2: 2 cells, 1 already done" in said
    assert "tuned: 1 cells, 1 already done" in said
    again = json.loads(lost.read_text())
    assert again["values"]["val/loss"] == trials[lost]["values"]["val/loss"]
    assert (tmp_path / "out/report.md").read_text().split("## How")[1] == report.split("## How")[1]


def test_a_trial_that_is_the_run_of_a_cell_is_that_cell(tmp_path: Path) -> None:
    tune = {"key": RATE, "values": [1.0e-9, 1.0e-2], "budget": 5, "seeds": [0, 1]}
    variants = {"as long as a trial": {"trainer.max_steps": 5}}
    write_study(tmp_path, tune=tune, grid={}, variants=variants, seeds=[0, 1, 2])
    said = must_run(*CALL, cwd=tmp_path, timeout=600).stderr
    assert "tuned-tuning: 4 cells, 0 already done" in said
    assert "tuned: 3 cells, 2 already done" in said
    trials = {each["digest"]: each for each in json.loads((tmp_path / "out/tuning/results.json").read_text())["cells"]}
    cells = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert [each["digest"] in trials for each in cells] == [True, True, False]
    assert all(each["values"] == trials[each["digest"]]["values"] for each in cells[:2])
    assert "The trials of seeds 0, 1 are cells too; as they chose" in (tmp_path / "out/report.md").read_text()
    shutil.rmtree(tmp_path / "out/tuning")
    write_study(
        tmp_path,
        tune={},
        grid={},
        variants={name: {**one, RATE: 1.0e-2} for name, one in variants.items()},
        seeds=[0, 1, 2],
    )
    assert "tuned: 3 cells, 1 already done" in must_run(*CALL, cwd=tmp_path, timeout=600).stderr
    again = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert [each["values"]["val/loss"] for each in again] == [each["values"]["val/loss"] for each in cells]


@pytest.mark.parametrize(
    ("over", "args", "message"),
    [
        ({}, ("--tuning",), "--tuning is for --cell or --slurm, of a study that has a first stage"),
        ({"tune": {}}, ("--tuning", "--slurm"), "--tuning is for --cell or --slurm, of a study that has a first stage"),
        (
            {"tune": {"key": RATE, "values": [1.0, 2.0, 3.0], "budget": 4, "halving": 2}},
            ("--tuning", "--slurm"),
            "--tuning cannot be combined with tune: halving, whose later trials depend on earlier ones",
        ),
        ({}, ("--tuning", "--cell", "4"), r"cell is 4; this study has 4 \(allowed: 0 to 3\)"),
        (
            {"tune": {"key": "model.init_args.n_head", "values": [2, 3], "budget": 2}},
            (),
            r"cell 1, n_layer=1,n_head=3,seed=0: dim 32 is not divisible by n_h",
        ),
    ],
)
def test_a_wrong_call_is_refused_before_any_trial(
    over: dict[str, Any], args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, **over)
    with pytest.raises(CallError, match=message):
        command.run(["--config", "tuned.yaml", "--folder", "out", *args])
    assert not (tmp_path / "out/tuning").exists()


def test_times_are_measured_alone_after_cells_of_equal_flops_that_ran_beside_others(tmp_path: Path) -> None:
    measures = ["val/loss", "cost/step_seconds", "cost/tokens_per_second", "wall_seconds"]
    steps = {"trainer.max_steps": 60, "trainer.val_check_interval": 60}  # the cells run for long enough to overlap
    study = {"grid": {LAYERS: [1, 2]}, "variants": {"a": steps}, "measure": measures, "report": ["table"]}
    write_study(tmp_path, tune={}, alone={"steps": 4}, equal="flops", **study)
    must_run(*CALL, "--jobs", "2", cwd=tmp_path, timeout=600)
    timed = json.loads((tmp_path / "out/costs/cells").joinpath(done_cells(tmp_path / "out/costs")[1]).read_text())
    assert timed["config"]["trainer"]["max_steps"] == 4
    assert timed["neighbours"] == 0
    # a token's products: 2 for each weight of the blocks and the head, and 4 · dim · block_size for attention
    model = timed["config"]["model"]["init_args"]
    dim, vocabulary = model["dim"], timed["config"]["data"]["tokenizer"]
    block = 24 * dim**2 + 4 * dim * model["block_size"]
    steps = round(60 * (block + 2 * dim * vocabulary) / (2 * block + 2 * dim * vocabulary))
    assert steps < 60
    cells = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    for cell, taken in zip(cells, (60, steps), strict=True):
        assert cell["neighbours"] == 1
        assert cell["alone"] == ["cost/step_seconds", "cost/tokens_per_second"]
        assert [step for step, _ in cell["curves"]["val/loss"]] == [taken]
    assert (
        json.loads((tmp_path / "out/results.json").read_text())["cells"][1]["values"]["cost/step_seconds"]
        == (timed["values"]["cost/step_seconds"])
    )
    report = (tmp_path / "out/report.md").read_text()
    assert "of each cell with no other beside it, after all cells, for 4 steps" in report
    assert "step time (ms) |" in report
    assert "wall time (s) †" in report
    assert f"as many FLOPs as the first. Optimizer steps: a, n_layer 1: 60, a, n_layer 2: {steps}." in (
        report.replace("\\", "")
    )


def test_settings_of_equal_parameters_differ_in_width(tmp_path: Path) -> None:
    write_study(tmp_path, tune={}, equal="parameters", grid={LAYERS: [1, 4]}, measure=["val/loss", "cost/parameters"])
    must_run(*CALL, cwd=tmp_path, timeout=600)
    first, second = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    widths = [cell["config"]["model"]["init_args"]["dim"] for cell in (first, second)]
    assert widths[0] == 32 > widths[1]
    counts = [cell["values"]["cost/parameters"] for cell in (first, second)]
    given = {key: second["config"]["model"]["init_args"][key] for key in ("n_layer", "n_head", "block_size")}
    unit = 2 * given["n_head"]
    nearby = [
        sum(p.numel() for p in GPT(GPTConfig(**given, dim=widths[1] + step, vocab_size=300)).parameters())
        for step in (-unit, 0, unit)
    ]
    assert nearby[1] == counts[1]
    assert min(nearby, key=lambda count: abs(count - counts[0])) == counts[1]
    assert f"by their width: n_layer 1: 32, n_layer 4: {widths[1]}" in (
        (tmp_path / "out/report.md").read_text().replace("\\", "")
    )


FAILS_ALONE = """
import lightning as L


class FailsAlone(L.Callback):
    def on_train_start(self, trainer, pl_module):
        if trainer.max_steps < 8:
            raise RuntimeError("the times alone are too much")
"""


def test_times_alone_that_cannot_be_measured_end_the_study_with_their_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS_ALONE)
    config = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=8, val_check_interval=8)
    config["trainer"]["callbacks"] = [{"class_path": "mine.FailsAlone"}]
    config |= {"samples": {"prompts": []}, "diagnostics": {"enabled": False}}
    del config["name"], config["seed_everything"]
    content = {"name": "tiny", "config": config, "measure": ["val/loss", "cost/step_seconds"], "alone": {"steps": 4}}
    write_config(tmp_path / "tiny.yaml", content)
    call = ("study", "--config", "tiny.yaml", "--folder", "out", "--trust", "mine.py")
    done = run_command(*call, cwd=tmp_path, timeout=300)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "the times alone of 1 of 1 settings could not be measured" in last
    assert "the times alone are too much" in last
    assert (tmp_path / "out/report.md").exists()
