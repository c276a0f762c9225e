"""A loss or gradient that is not finite: found before its step is taken, and never in a checkpoint."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt import load
from lightning_gpt.errors import WorkError
from lightning_gpt.training.callbacks import BestCheckpoint, LastCheckpoint, NonFinite, non_finite
from lightning_gpt.training.callbacks.non_finite import Action
from lightning_gpt.training.checkpoint_io import CheckedFiles
from tests.processes import run_command, tiny_config, tiny_corpus, write_config
from tests.training.toy import Toy, fit

LAST = "checkpoints/last.ckpt"


def weight_after(losses: list[float]) -> float:
    return -0.1 * sum(losses)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_stops_from_the_first_step_on(wrong: float, tmp_path: Path) -> None:
    toy = Toy([1.0, wrong, 1.0])
    with pytest.raises(WorkError, match=rf"step 2 was not taken: the loss is {wrong}"):
        fit(toy, tmp_path, NonFinite())
    assert float(toy.weight) == pytest.approx(-0.1)


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path) -> None:
    toy = Toy([1.0, 1.0])
    toy.weight.register_hook(lambda gradient: gradient * math.inf if len(toy.seen) == 2 else gradient)
    with pytest.raises(WorkError, match=r"step 2 was not taken: the loss is 1.0000 and the gradient is not finite"):
        fit(toy, tmp_path, NonFinite())
    assert float(toy.weight) == pytest.approx(-0.1)


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_it_gives_up_where_nothing_is_left(action: Action, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="step 13 was not taken: the loss is nan"):
        fit(Toy([1.0, 1.0, *[math.nan] * 20]), tmp_path, NonFinite(action), LastCheckpoint(every_n_steps=1))


@pytest.mark.parametrize(
    ("lr", "status", "said"),
    [
        ("100", 0, r"perplexity is infx the unigram baseline's"),
        (
            "1000",
            1,
            r"error: the model's logits are not finite, so no token can be chosen",
        ),
    ],
)
def test_a_run_that_diverged_ends_in_a_clear_line(lr: str, status: int, said: str, tmp_path: Path) -> None:
    """The loss is beyond what a perplexity can hold, or the weights are finite but what follows from them is not."""
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=4, val_check_interval=2)
    content["diagnostics"] = {"enabled": False}
    config = write_config(tmp_path / "tiny.yaml", content)
    options = ("--model.optimization.lr", lr, "--trainer.gradient_clip_val", "0")
    done = run_command("fit", "--config", str(config), *options, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert re.search(said, done.stderr), done.stderr


def test_skip_leaves_the_step_out(tmp_path: Path) -> None:
    toy = Toy([1.0, 2.0, math.nan, 3.0])
    fit(toy, tmp_path, NonFinite("skip"))
    assert float(toy.weight) == pytest.approx(weight_after([1.0, 2.0, 3.0]))


class Heavy(Toy):
    """A toy whose optimizer has a state: momentum."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def test_rewind_is_a_resume_that_skips_the_steps_since(tmp_path: Path) -> None:
    """Step 3 is undone, with its momentum; the fourth has no finite loss, and the run goes on with the fifth."""
    toy, same = Heavy([1.0, 2.0, 3.0, math.nan, 5.0, 6.0]), Heavy([1.0, 2.0, 5.0, 6.0])
    fit(toy, tmp_path / "rewound", NonFinite("rewind"), LastCheckpoint(every_n_steps=2))
    fit(same, tmp_path / "same")
    assert [toy.seen[step] for step in (0, 1, 4, 5)] == same.seen
    assert float(toy.weight) == float(same.weight)


def test_the_step_is_the_whole_of_its_micro_batches(tmp_path: Path) -> None:
    toy = Toy([1.0, 1.0, math.nan, 1.0, 1.0, 1.0])
    fit(toy, tmp_path, NonFinite("skip"), accumulate_grad_batches=2)
    assert float(toy.weight) == pytest.approx(weight_after([1.0, 1.0, 1.0, 1.0]) / 2)


class Fused(Toy):
    """A toy with the optimizer that leaves out steps by itself."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


@pytest.mark.parametrize("wrong", [2, 3, 4])
def test_the_optimizer_leaves_the_step_out_until_the_flag_is_read(
    wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the flag is read one step later, or before a save: the weights are those before the step."""
    losses = [1.0, 1.0, 1.0, 1.0]
    losses[wrong - 1] = math.nan
    monkeypatch.setattr(non_finite, "_can_skip_steps", lambda optimizer: True)
    toy, same = Fused(losses), Fused(losses[: wrong - 1])
    with pytest.raises(WorkError, match=f"step {wrong} was not taken: the loss is nan; the batch is saved in"):
        fit(toy, tmp_path, NonFinite(), LastCheckpoint(every_n_steps=4))
    fit(same, tmp_path / "same")
    assert float(toy.weight) == float(same.weight)
    assert not (tmp_path / LAST).exists()
    saved = torch.load(tmp_path / f"non_finite/step_{wrong}.ckpt", weights_only=True)
    assert [int(batch) for batch in saved["micro_batches"]] == [wrong - 1]


def test_the_last_good_checkpoint_is_named_and_the_batch_saved(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the batch is saved in .*step_4.ckpt; the last good checkpoint, of step 2"):
        fit(Toy([1.0, 1.0, 1.0, math.nan]), tmp_path, NonFinite(), LastCheckpoint(every_n_steps=2))
    saved = torch.load(tmp_path / "non_finite/step_4.ckpt", weights_only=True)
    assert [int(batch) for batch in saved["micro_batches"]] == [3]
    assert math.isnan(saved["losses"][0])
    assert float(saved["state_dict"]["weight"]) == pytest.approx(-0.3)


class Overflowing(Toy):
    """A toy whose third step makes its weight infinite although loss and gradient are finite."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if len(self.seen) == 3:
            self.weight.data.fill_(math.inf)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the weights of step 3 are not finite \(weight\): they are not saved in"):
        fit(
            Overflowing([1.0, 1.0, 1.0]),
            tmp_path,
            NonFinite(),
            LastCheckpoint(every_n_steps=1),
            plugins=[CheckedFiles()],
        )
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 2


def test_a_resumed_run_goes_on_counting_the_steps_in_a_row(tmp_path: Path) -> None:
    fit(Toy([1.0, *[math.nan] * 6]), tmp_path / "first", NonFinite("skip"), LastCheckpoint())
    first = tmp_path / "first" / LAST
    with pytest.raises(WorkError, match=r"step 12 was not taken: .*, after 10 such steps in a row"):
        fit(Toy([math.nan] * 13), tmp_path, NonFinite("skip"), LastCheckpoint(), resume=first, max_epochs=2)


class Validated(Toy):
    """A toy with a validation loss after every second step: NaN, then 2, then −∞."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", [math.nan, 2.0, -math.inf][len(self.seen) // 2 - 1])


def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    toy, best = Validated([1.0] * 6), BestCheckpoint()
    best.dirpath = str(tmp_path)
    fit(toy, tmp_path, best, limit_val_batches=1, val_check_interval=2)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("non_finite")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=60)
    content |= {"diagnostics": {"enabled": False}, "checkpoints": {"every_n_steps": 1}}
    content["model"]["init_args"] |= {"optimization": {"lr": 1e6}}
    return write_config(folder / "tiny.yaml", content)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_diverges_stops_with_one_line(processes: int, config: Path, tmp_path: Path) -> None:
    """The real command at a learning rate of 1e6: exit status 1, module and batch named; the batch repeats it."""
    more = ("--trainer.devices", "2", "--trainer.strategy", "ddp") if processes == 2 else ()
    done = run_command("fit", "--config", str(config), *more, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = re.search(
        r"error: step (\d+) was not taken: the loss is nan; first not finite: (blocks\.\d\.\w+); the batch is saved in "
        r"(\S+); the last good checkpoint, of step (\d+), is (\S+?last.ckpt)",
        done.stderr,
    )
    assert said, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert errors == [said[0]] * len(errors), "the processes' lines run into each other"
    assert len(said[0]) < 300
    assert int(said[4]) == int(said[1]) - 1
    checkpoints = list((tmp_path / "runs/tiny/version_0/checkpoints").iterdir())
    assert tmp_path / said[5] in checkpoints
    for path in [*checkpoints, tmp_path / said[3]]:
        content = torch.load(path, weights_only=True)
        assert all(bool(value.isfinite().all()) for value in content["state_dict"].values()), path
    batch = content["micro_batches"][0]
    assert batch["cursor"]["rows"] == int(said[1]) * len(batch["ids"]) * processes
    model = load(tmp_path / said[3])
    with model.record() as trace, torch.no_grad():
        assert not bool(model.loss(batch["ids"], batch["targets"]).isfinite())
    assert not bool(trace[said[2]].isfinite().all())


def test_skip_saves_no_weights_that_are_not_finite(config: Path, tmp_path: Path) -> None:
    done = run_command("fit", "--config", str(config), "--non_finite", "skip", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "step skipped" in done.stderr
    for path in (tmp_path / "runs/tiny/version_0/checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        assert all(bool(value.isfinite().all()) for value in content["state_dict"].values()), path


def test_a_step_that_is_skipped_by_name_is_not_checked(config: Path, tmp_path: Path) -> None:
    """The run then ends at a later step: what is resumed with ``spikes.skip_steps`` gets past the bad one."""
    steps: list[int] = []
    for more in ((), ("--spikes.skip_steps", "[[{0}, {0}]]")):
        done = run_command("fit", "--config", str(config), *(each.format(*steps) for each in more), cwd=tmp_path)
        found = re.search(r"error: step (\d+) was not taken", done.stderr)
        assert found, done.stderr
        steps.append(int(found[1]))
    assert steps[1] > steps[0]


def test_another_word_is_refused(config: Path, tmp_path: Path) -> None:
    done = run_command("fit", "--config", str(config), "--non_finite", "ignore", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: non_finite is 'ignore'; allowed: 'stop', 'skip', 'rewind'"
