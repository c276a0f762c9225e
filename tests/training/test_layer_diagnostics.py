"""LayerDiagnostics in real fits: what it logs, writes and draws, and that it changes nothing."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS, Figures, begin, measure, one_value
from lightning_gpt.analysis.probe import Probe, block_parameters
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.training.callbacks import LayerDiagnostics, MetricsFile, StepMetrics, layer_diagnostics
from lightning_gpt.training.callbacks.checkpoints import LastCheckpoint
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.metrics_jsonl import read_metrics
from lightning_gpt.training.module import GPTModule, LanguageModule, SingleHeadModule
from tests.processes import scalars, tiny_corpus

STEPS, EVERY = 12, 4
OF_STEPS = {"grad_norm", "update_ratio"}
RATIO_STEPS = [1, 6, 11]
"""The first logged step and every fifth from there, of STEPS."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def gpt_module() -> GPTModule:
    torch.manual_seed(3)
    return GPTModule(n_layer=3, n_head=2, dim=16, block_size=16, vocab_size=300, dropout=0.1)


def fit(
    corpus: Path,
    folder: Path,
    module: LanguageModule,
    depth: LayerDiagnostics | None,
    ckpt_path: Path | None = None,
    separate_documents: bool = False,
    **trainer: Any,
) -> Path:
    """Train for a moment in this process; returns the run's folder."""
    logger = TensorBoardLogger(folder, "run") if trainer.pop("logger", True) else False
    run = Path(logger.log_dir) if logger else folder
    fitted = L.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": STEPS,
            "val_check_interval": EVERY,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 1,
            "default_root_dir": folder,
            "logger": logger,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [MetricsFile(), StepMetrics(), LastCheckpoint(100), *([] if depth is None else [depth])],
            **trainer,
        }
    )
    data = TextData(
        [Files(str(corpus))], tokenizer=300, block_size=module.model.config.block_size, batch_size=4, val_share=0.1,
        test_share=0.1, shuffle_window=64, separate_documents=separate_documents,
    )  # fmt: skip
    L.seed_everything(1, verbose=False)
    fitted.fit(module, data, ckpt_path=ckpt_path)
    return run


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(corpus, tmp_path_factory.mktemp("depth"), gpt_module(), LayerDiagnostics())


def entries(run: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((run / "layers.json").read_text())
    return content


def test_every_diagnostic_is_in_the_file_at_every_validation(run: Path) -> None:
    assert [entry["step"] for entry in entries(run)] == [0, 4, 8, 12]
    for entry in entries(run):
        measured = {name for name, diagnostic in DIAGNOSTICS.items() if not diagnostic.on_request}
        expected = measured - (OF_STEPS if entry["step"] == 0 else set())
        assert set(entry) == {"step", *expected}
        for name in expected:
            diagnostic = DIAGNOSTICS[name]
            assert len(entry[name]) == (4 if diagnostic.of == "stream" else 3), name
            for value in entry[name]:
                assert isinstance(value, list) == diagnostic.by_head, name
                assert not diagnostic.by_head or len(value) == 2, name
                number = one_value(value)
                assert number is not None
                assert diagnostic.low is None or number >= diagnostic.low, name
                assert diagnostic.high is None or number <= diagnostic.high + 1e-6, name


def test_scalars_are_the_files_figures_with_heads_averaged(run: Path) -> None:
    logged = scalars(run)
    for entry in entries(run):
        for name in set(entry) - {"step"}:
            step = entry["step"]
            if name == "update_ratio":
                step = max(measured for measured in RATIO_STEPS if measured <= step)
            for layer, value in enumerate(entry[name]):
                assert logged[f"layers/{name}/layer_{layer:02}", step] == pytest.approx(one_value(value), rel=1e-5)
    for name, expected in (("grad_norm", list(range(1, STEPS + 1))), ("update_ratio", RATIO_STEPS)):
        assert [step for tag, step in logged if tag == f"layers/{name}/layer_00"] == expected


def test_the_blocks_gradients_are_a_part_of_the_whole_models(run: Path) -> None:
    """Their squares add up to less than the whole norm's, which has the embeddings too, and none is 0."""
    logged = scalars(run)
    for step in range(1, STEPS + 1):
        blocks = [logged[f"layers/grad_norm/layer_{layer:02}", step] for layer in range(3)]
        assert min(blocks) > 0
        assert sum(norm**2 for norm in blocks) < logged["train/grad_norm", step] ** 2


def test_update_ratio_is_that_of_the_weights_before_and_after(corpus: Path, tmp_path: Path) -> None:
    module = gpt_module()
    before = [[p.detach().clone() for p in part] for part in block_parameters(module.model)]
    run = fit(corpus, tmp_path, module, LayerDiagnostics(), max_steps=1, val_check_interval=1)
    for layer, (old, new) in enumerate(zip(before, block_parameters(module.model), strict=True)):
        change = sum(float((n.double() - o.double()).square().sum()) for o, n in zip(old, new, strict=True)) ** 0.5
        size = sum(float(o.double().square().sum()) for o in old) ** 0.5
        assert entries(run)[-1]["update_ratio"][layer] == pytest.approx(change / size, rel=1e-4)


def test_the_probe_is_the_first_validation_text_and_the_figures_are_the_models(corpus: Path, tmp_path: Path) -> None:
    module, depth = gpt_module(), LayerDiagnostics(tokens=32)
    run = fit(corpus, tmp_path, module, depth)
    data = module.trainer.datamodule
    rows = next(iter(data.evaluation("val")))
    text = torch.cat([rows["ids"][:2].flatten(), rows["targets"][1, -1:]])[1:]  # the first token is no target
    ids = torch.cat([text, rows["targets"][2, :1]])[:32].view(2, 16)
    assert torch.equal(depth._batch["ids"], ids)
    figures = measure(Probe.take(module.model, ids, depth._batch["targets"]))
    last = entries(run)[-1]
    assert {name: last[name] for name in figures} == figures


def test_watching_changes_no_weight(run: Path, corpus: Path, tmp_path: Path) -> None:
    alone = fit(corpus, tmp_path, gpt_module(), None)
    ours, theirs = (
        torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for each in (run, alone)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_goes_on_from_the_file_beside_its_checkpoint(run: Path, corpus: Path, tmp_path: Path) -> None:
    half = fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(), max_steps=STEPS, limit_val_batches=1)
    whole = entries(half)
    last = half / "checkpoints/last.ckpt"
    kept = torch.load(last, weights_only=True)["callbacks"]["LayerDiagnostics"]["of_step"]
    assert kept == {name: whole[-1][name] for name in OF_STEPS}, "the next validation may come before the next of them"
    (half / "layers.json").write_text(json.dumps([*whole, {"step": 99, "token_cosine": [1.0]}]))
    resumed = fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(), last, max_steps=2 * STEPS, limit_val_batches=1)
    assert resumed != half
    assert [entry["step"] for entry in entries(resumed)] == [0, 4, 8, 12, 16, 20, 24], "99 is past the checkpoint"
    assert entries(resumed)[:4] == whole
    shutil.rmtree(half / "checkpoints")


def test_an_interrupted_write_leaves_the_old_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gpt import whole_file

    path = tmp_path / "layers.json"
    layer_diagnostics._write(path, [{"step": 0}])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_file.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        layer_diagnostics._write(path, [{"step": 0}, {"step": 1}])
    assert json.loads(path.read_text()) == [{"step": 0}]


def test_the_one_head_model_has_one_block_in_bf16_mixed_too(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SingleHeadModule(dim=16, block_size=8, vocab_size=300)
    depth = LayerDiagnostics()
    run = fit(corpus, tmp_path, module, depth, precision="bf16-mixed", log_every_n_steps=2)
    last = entries(run)[-1]
    assert [len(last[name]) for name in ("token_cosine", "attention_entropy", "grad_norm")] == [2, 1, 1]
    assert depth._probe.streams.dtype == torch.float32
    exact = measure(Probe.take(module.double().model, depth._batch["ids"], depth._batch["targets"]))
    assert last["rms"] == pytest.approx(exact["rms"], rel=1e-5), "bf16 would be off by a hundredth"
    steps = [step for tag, step in scalars(run) if tag == "layers/grad_norm/layer_00"]
    assert steps == list(range(2, STEPS + 1, 2)), "at logged steps only"


def test_without_a_logger_the_file_is_beside_the_checkpoints(corpus: Path, tmp_path: Path) -> None:
    fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(), logger=False, separate_documents=True)
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 4, 8, 12]
    assert (tmp_path / "checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("settings", [{"enabled": False}, {"limit_val_batches": 0}, {"fast_dev_run": True}])
def test_turned_off_or_without_validation_it_leaves_nothing(
    settings: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    enabled = settings.pop("enabled", True)
    fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(enabled=enabled), **settings)
    assert not list(tmp_path.rglob("layers.json"))


def test_it_says_its_share_of_the_time(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    assert [(event.step, 0 < event.value < 1) for event in events.Scalars("layers/share_of_time")] == [(STEPS, True)]


def test_its_share_leaves_out_training_that_the_device_still_has_to_do(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: a training step queues its work and returns; the next measurement waits for it."""
    clock = {"now": 0.0, "queued": 0.0}

    class Queued(GPTModule):
        def training_step(self, *given: Any) -> Any:
            clock["queued"] += 9
            return super().training_step(*given)

    def synchronize(*_: Any) -> None:
        clock["now"], clock["queued"] = clock["now"] + clock["queued"], 0.0

    def measured(probe: Probe, requested: bool) -> Any:
        clock["queued"] += 1
        synchronize()  # figures are read on the CPU
        return begin(probe, requested)

    callback = "lightning_gpt.training.callbacks.layer_diagnostics"
    monkeypatch.setattr("lightning_gpt.training.device_clock.synchronize", synchronize)
    monkeypatch.setattr("lightning_gpt.training.device_clock.time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    monkeypatch.setattr(f"{callback}.begin", measured)
    module = Queued(n_layer=1, n_head=2, dim=16, block_size=16, vocab_size=300)
    events = EventAccumulator(str(fit(corpus, tmp_path, module, LayerDiagnostics())))
    events.Reload()
    (share,) = events.Scalars("layers/share_of_time")
    probes = 1 + STEPS // EVERY
    assert share.value == pytest.approx(probes / (probes + 9 * STEPS))


def test_what_blocks_are_worth_is_measured_if_asked_for(corpus: Path, tmp_path: Path) -> None:
    run = fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(layer_values=True), max_steps=4)
    logged = scalars(run)
    for entry in entries(run):
        assert len(entry["layer_value"]) == 3
        for layer, value in enumerate(entry["layer_value"]):
            assert logged[f"layers/layer_value/layer_{layer:02}", entry["step"]] == pytest.approx(value, rel=1e-5)
    assert [entry["step"] for entry in entries(run)] == [0, 4]


def test_a_probe_of_one_token_is_refused() -> None:
    with pytest.raises(CallError, match=r"diagnostics\.tokens is 1; it must be a whole number from 2 to 16,777,216"):
        LayerDiagnostics(tokens=1)


class Steps:
    """Counts the steps that a module begins; fails in one of them if asked to.

    It is no class of modules of its own, which every later message about known models would name.
    """

    def __init__(self, module: GPTModule) -> None:
        self.begun, self.fails_at, step = 0, 0, module.training_step

        def training_step(*given: Any) -> Any:
            self.begun += 1
            if self.begun == self.fails_at:
                raise WorkError("the training failed")
            return step(*given)

        module.training_step = training_step  # type: ignore[method-assign]


def beside(monkeypatch: pytest.MonkeyPatch, finish: Callable[[int, Callable[[], Figures]], Figures]) -> None:
    """Let measurements be finished as they are while a device trains; ``finish`` gets the number of each."""
    begun: list[None] = []

    def begins(probe: Probe, requested: bool) -> Callable[[], Figures]:
        number, rest = len(begun), begin(probe, requested)
        begun.append(None)
        return lambda: finish(number, rest)

    monkeypatch.setattr(layer_diagnostics, "SAME_CORES", set())
    monkeypatch.setattr(layer_diagnostics, "begin", begins)


def lines_of_layers(run: Path) -> list[dict[str, Any]]:
    """The lines with diagnostics in ``metrics.jsonl``, by step, without their times."""
    found = [line for line in read_metrics(run / "metrics.jsonl") if any("/layer_" in tag for tag in line)]
    for line in found:
        del line["seconds"]
    return sorted(found, key=lambda line: (line["step"], sorted(line)))


def test_figures_that_are_finished_beside_the_training_are_the_same_to_the_bit(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, gone_on = gpt_module(), []
    trained = Steps(module)

    def finish(number: int, rest: Callable[[], Figures]) -> Figures:
        until, end = min(EVERY * number + 2, STEPS), time.monotonic() + 60
        while trained.begun < until and time.monotonic() < end:
            time.sleep(0.001)
        gone_on.append(trained.begun >= until)
        return rest()

    beside(monkeypatch, finish)
    later = fit(corpus, tmp_path, module, LayerDiagnostics())
    assert gone_on == [True] * (1 + STEPS // EVERY)
    assert (later / "layers.json").read_text() == (run / "layers.json").read_text()
    assert lines_of_layers(later) == lines_of_layers(run)
    ours, theirs = (
        {key: value for key, value in scalars(each).items() if "/layer_" in key[0]} for each in (later, run)
    )
    assert ours == theirs
    for tag in {tag for tag, _ in ours}:
        steps = [step for each, step in ours if each == tag]
        assert steps == sorted(steps)


def test_a_checkpoint_of_its_step_needs_no_measurement_and_a_later_one_waits_for_it(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed right after the first of them measures again when it is resumed."""
    saving, killed, found = threading.Event(), tmp_path / "killed", {}

    class Noted(CheckedFiles):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            step = checkpoint["global_step"]
            found[step] = [entry["step"] for entry in entries(path.parent.parent)]
            super().save_checkpoint(checkpoint, path)
            if step == EVERY:
                shutil.copytree(path.parent.parent, killed)

    class Saving(L.Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step > EVERY:
                saving.set()

    def finish(number: int, rest: Callable[[], Figures]) -> Figures:
        assert number == 0 or saving.wait(60)
        return rest()

    with monkeypatch.context() as patched:
        beside(patched, finish)
        callbacks = [StepMetrics(), LastCheckpoint(2), Saving(), LayerDiagnostics()]
        fit(corpus, tmp_path, gpt_module(), None, callbacks=callbacks, plugins=[Noted()])
    assert [found[step] for step in (2, 4, 6)] == [[0], [0], [0, 4]]
    resumed = fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(), killed / "checkpoints/last.ckpt")
    assert entries(resumed) == entries(run)


def test_a_measurement_that_fails_beside_the_training_ends_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(number: int, rest: Callable[[], Figures]) -> Figures:
        if number:
            raise WorkError("no memory for a spectrum")
        return rest()

    beside(monkeypatch, finish)
    with pytest.raises(WorkError, match="no memory for a spectrum"):
        fit(corpus, tmp_path, gpt_module(), LayerDiagnostics(), max_steps=EVERY)


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_that_fails_writes_what_was_measured_before(
    fails: bool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = gpt_module()
    steps = Steps(module)
    steps.fails_at = EVERY + 2

    def finish(number: int, rest: Callable[[], Figures]) -> Figures:
        end = time.monotonic() + 60
        while number and steps.begun < steps.fails_at and time.monotonic() < end:
            time.sleep(0.001)
        if number and fails:
            raise WorkError("no memory for a spectrum")
        return rest()

    beside(monkeypatch, finish)
    with pytest.raises(WorkError, match="the training failed"):
        fit(corpus, tmp_path, module, LayerDiagnostics(), logger=False)
    assert [entry["step"] for entry in entries(tmp_path)] == [0] if fails else [0, EVERY]
    assert ("layer diagnostics failed, too: no memory for a spectrum" in capsys.readouterr().err) == fails
