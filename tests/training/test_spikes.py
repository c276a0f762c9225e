"""A loss that jumps: found before its step is taken, and the run stopped or the step left out."""

import math
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_gpt import trust
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.training.callbacks import LastCheckpoint, NonFinite, Spikes
from tests.processes import must_run, run_command, tiny_config, tiny_corpus, write_config
from tests.training.toy import Toy, fit

LAST = "checkpoints/last.ckpt"
CALM = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0]  # mean 1, deviation 0.129


def weight_after(losses: list[float]) -> float:
    return -0.1 * sum(losses)


@pytest.mark.parametrize(("jump", "is_one"), [(1.38, False), (1.40, True), (-5.0, False)])
def test_the_threshold_is_in_standard_deviations(jump: float, is_one: bool, tmp_path: Path) -> None:
    toy = Toy([*CALM, jump])
    spikes = Spikes(threshold=3.0, window=6)
    if not is_one:
        fit(toy, tmp_path, spikes)
        assert float(toy.weight) == pytest.approx(weight_after([*CALM, jump]))
        return
    with pytest.raises(WorkError, match=r"step 7 was not taken: the loss is 1.4000, 3.1 standard deviations above 1"):
        fit(toy, tmp_path, spikes)
    assert float(toy.weight) == pytest.approx(weight_after(CALM))


def test_skip_leaves_the_step_out_and_goes_on(tmp_path: Path) -> None:
    toy = Toy([*CALM, 9.0, math.nan, 1.0])
    fit(toy, tmp_path, Spikes(threshold=3.0, window=6, action="skip"), NonFinite("skip"))
    assert float(toy.weight) == pytest.approx(weight_after([*CALM, 1.0]))


def test_the_eleventh_step_to_skip_in_a_row_ends_the_run_and_says_so(tmp_path: Path) -> None:
    toy = Toy([*CALM, *(10.0**power for power in range(1, 13))])
    with pytest.raises(
        WorkError, match=r"step 17 was not taken: .*threshold is 3\), after 10 skipped steps in a row; no"
    ):
        fit(toy, tmp_path, Spikes(threshold=3.0, window=6, action="skip"))


def test_steps_named_beforehand_are_not_taken(tmp_path: Path) -> None:
    toy = Toy(CALM)
    fit(toy, tmp_path, Spikes(skip_steps=[(2, 3), (6, 6)]))
    assert float(toy.weight) == pytest.approx(weight_after([CALM[0], CALM[3], CALM[4]]))


def test_the_loss_of_a_step_is_the_mean_of_its_micro_batches(tmp_path: Path) -> None:
    """Each micro-batch of the third step is far from calm, and their mean is not."""
    toy = Toy([1.0, 1.2, 0.8, 1.0, 9.0, -7.0])
    fit(toy, tmp_path, Spikes(threshold=3.0, window=4), accumulate_grad_batches=2)
    assert float(toy.weight) == pytest.approx(weight_after(toy.losses) / 2)


def test_the_last_step_of_an_epoch_has_the_mean_of_the_micro_batches_that_are_left(tmp_path: Path) -> None:
    fit(Toy([1.0, 1.2, 1.1]), tmp_path, Spikes(threshold=3.0), LastCheckpoint(), accumulate_grad_batches=2)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["callbacks"]["Spikes"]["before"] == pytest.approx([1.1, 1.1])


def test_losses_are_not_those_that_fp16_has_scaled(tmp_path: Path) -> None:
    """The scale doubles after six steps, and the losses do not."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=len(CALM))
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(WorkError, match=r"step 9 was not taken: the loss is 9.0000"):
        fit(Toy([*CALM, 1.1, 0.9, 9.0]), tmp_path, Spikes(threshold=3.0, window=6), NonFinite(), plugins=[precision])
    assert scaler.get_scale() == 2048.0


def test_a_resumed_run_names_the_checkpoint_that_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it has saved one of its own; the command that it prints trusts what this one trusts."""
    fit(Toy(CALM), tmp_path / "first", Spikes(threshold=3.0, window=6), LastCheckpoint())
    first = tmp_path / "first" / LAST
    monkeypatch.setattr(trust, "_trusted", ["mine.py"])
    with pytest.raises(WorkError, match=rf"step 7 .*; the last good checkpoint, of step 6, is {first}"):
        fit(
            Toy([9.0, *CALM]),
            tmp_path / "second",
            Spikes(threshold=3.0, window=6),
            LastCheckpoint(),
            resume=first,
            max_epochs=2,
        )
    assert f"--ckpt_path {first} --spikes.skip_steps '[[7, 7]]' --trust mine.py" in capsys.readouterr().err


def test_the_last_good_checkpoint_is_named_and_stays(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the last good checkpoint, of step 6, is .*last.ckpt"):
        fit(Toy([*CALM, 9.0]), tmp_path, Spikes(threshold=3.0, window=6), LastCheckpoint(every_n_steps=2))
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(weight_after(CALM))
    assert saved["callbacks"]["Spikes"]["before"] == pytest.approx(CALM)


def test_a_run_is_stopped_and_goes_on_as_it_was_told(tmp_path: Path) -> None:
    """The real command: exit status 1, one line, and the command that it prints leaves the steps out."""
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=40)
    content |= {"spikes": {"threshold": 1.0, "window": 8}, "diagnostics": {"enabled": False}}
    write_config(tmp_path / "tiny.yaml", content)
    stopped = run_command("fit", "--config", "tiny.yaml", cwd=tmp_path)
    assert stopped.returncode == 1, stopped.stderr
    found = re.search(r"error: step (\d+) was not taken: .* of step (\d+), is (\S+)", stopped.stderr.splitlines()[-1])
    assert found, stopped.stderr
    spike, saved, path = int(found[1]), int(found[2]), tmp_path / found[3]
    assert 0 < saved < spike
    assert torch.load(path, weights_only=True)["global_step"] == saved
    told = r"^  lightning-gpt fit --config (\S+) --ckpt_path (\S+) --spikes.skip_steps '(.*)'"
    said = re.search(told, stopped.stderr, re.M)
    assert said, stopped.stderr
    assert said[3] == f"[[{saved + 1}, {spike}]]"

    # to the end of the steps left out: they are read, and change nothing
    call = ("fit", "--config", said[1], "--ckpt_path", said[2], "--spikes.skip_steps", said[3])
    must_run(*call, "--trainer.max_steps", str(spike), cwd=tmp_path)
    before, after = (torch.load(file, weights_only=True) for file in (path, tmp_path / "runs/tiny/version_1" / LAST))
    assert after["global_step"] == spike
    assert after["TextData"]["cursor"]["rows"] == 4 * spike
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    assert str(before["optimizer_states"][0]["state"]) == str(after["optimizer_states"][0]["state"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0.0}, "spikes.threshold is 0.0; it must be a positive number"),
        ({"window": 3}, "spikes.window is 3; it must be a whole number from 4 to 1,048,576"),
        ({"skip_steps": [(5, 4)]}, r"\[5, 4\]; a pair is \[first, last\]"),
        ({"skip_steps": [(0, 4)]}, "it must be a list, each entry a list of 2: each a whole number from 1 to"),
    ],
)
def test_wrong_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(CallError, match=said):
        Spikes(**options)
