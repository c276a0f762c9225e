"""TensorBoard after a real fit: every tag is read back from the event files."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.training.metrics_jsonl import read_metrics, scalars_of
from tests.processes import must_run, scalars, tiny_config, tiny_corpus, write_config

N_LAYER, STEPS = 2, 30
VALIDATIONS = [10, 20, 30]


MEASURED = {name: diagnostic for name, diagnostic in DIAGNOSTICS.items() if not diagnostic.on_request}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a fit has run as it is typed, and another with the layer diagnostics off and no logger."""
    folder = tmp_path_factory.mktemp("board")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, val_check_interval=10)
    content["diagnostics"] = {"enabled": True}
    content["trainer"]["log_every_n_steps"] = 5
    write_config(folder / "tiny.yaml", content)
    (folder / "said.txt").write_text(must_run("fit", "--config", "tiny.yaml", cwd=folder).stderr)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return folder / "runs/tiny/version_0"


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def plugin_data(events: EventAccumulator, tag: str) -> plugin_data_pb2.HParamsPluginData:
    content = events.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_every_layer_of_every_diagnostic_is_a_curve(events: EventAccumulator) -> None:
    for name, diagnostic in MEASURED.items():
        layers = N_LAYER + (diagnostic.of == "stream")
        tags = sorted(tag for tag in events.Tags()["scalars"] if tag.startswith(f"layers/{name}/"))
        assert tags == [f"layers/{name}/layer_{layer:02}" for layer in range(layers)]
        every = 5 if name == "grad_norm" else 25  # the logged steps, and every fifth of them
        of_steps = list(range(5, STEPS + 1, every))
        expected = [0, *VALIDATIONS] if diagnostic.measure else of_steps
        for tag in tags:
            assert [event.step for event in events.Scalars(tag)] == expected, tag


def test_the_only_other_scalars_are_the_runs_own(events: EventAccumulator) -> None:
    others = {tag for tag in events.Tags()["scalars"] if not re.fullmatch(r"layers/\w+/layer_\d\d", tag)}
    assert {tag.split("/")[0] for tag in others} <= {"train", "val", "data", "layers", "cost", "initial"}
    assert "hp_metric" not in others
    assert {tag for tag in others if tag.startswith("layers/")} == {"layers/share_of_time"}


def test_there_is_a_heatmap_of_every_diagnostic_and_the_attention_grid(events: EventAccumulator) -> None:
    drawn_at_the_end = {
        *(f"layers/{name}" for name in MEASURED),
        "layers/cka_between_layers",
        "layers/value_spectrum/blocks_00_01",
    }
    images = set(events.Tags()["images"])
    assert {tag for tag in images if tag.startswith("layers/")} == drawn_at_the_end
    for tag in drawn_at_the_end:
        assert [event.step for event in events.Images(tag)] == [STEPS]
    heads = sorted(tag for tag in images if tag.startswith("attention/"))
    assert heads == [f"attention/layer_{layer:02}/heads_00_01" for layer in range(N_LAYER)]
    assert all([event.step for event in events.Images(tag)] == VALIDATIONS for tag in heads)
    for tag in images:
        last = events.Images(tag)[-1]
        assert last.encoded_image_string.startswith(b"\x89PNG")
        assert last.width == 340, "a card's width: a wider one is scaled down until its labels cannot be read"
        assert 200 < last.height <= 400


def test_text_samples_are_at_every_validation(events: EventAccumulator) -> None:
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    assert sorted(texts) == [f"samples/{number}/text_summary" for number in range(3)]
    for tag in texts:
        assert [event.step for event in events.Tensors(tag)] == VALIDATIONS
        assert all(event.tensor_proto.string_val[0].startswith(b"**") for event in events.Tensors(tag))


def test_custom_scalars_show_one_chart_of_the_losses_and_one_of_each_other_thing(events: EventAccumulator) -> None:
    event = events.Tensors("custom_scalars__config__")[0]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]

    def shown(patterns: Iterable[str]) -> list[str]:  # the plugin matches from a tag's start
        return sorted(tag for pattern in patterns for tag in tags if re.match(pattern, tag))

    assert [category.title for category in layout.category] == ["loss", "training"]
    charts = {chart.title: shown(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts == {
        "training and validation loss (nats)": ["train/loss", "val/loss"],
        "learning rate": ["train/lr"],
        "gradient norm, before clipping": ["train/grad_norm"],
        "tokens per second": ["train/tokens_per_second"],
    }


def test_no_curve_repeats_another_and_the_metrics_file_has_all(run: Path, events: EventAccumulator) -> None:
    written = {tag for line in read_metrics(run / "metrics.jsonl") for tag in scalars_of(line)}
    assert written - set(events.Tags()["scalars"]) == {"train/perplexity", "val/perplexity", "cost/tokens_per_second"}


def test_hyper_parameters_are_in_the_runs_own_event_file_with_its_results(run: Path, events: EventAccumulator) -> None:
    started = plugin_data(events, "_hparams_/session_start_info").session_start_info.hparams
    settings: dict[str, Any] = {key: getattr(value, value.WhichOneof("kind")) for key, value in started.items()}
    expected = {"model": "GPT", "n_layer": 2, "n_head": 2, "dim": 32, "vocab_size": 300, "lr": 3e-4, "dropout": 0.1,
                "schedule": "cosine", "betas": "0.9, 0.95", "batch_rows": 4, "max_steps": STEPS,
                "precision": "32-true"}  # fmt: skip
    assert {key: settings[key] for key in expected} == expected
    experiment = plugin_data(events, "_hparams_/experiment").experiment
    results = ["val/loss", "val/bits_per_byte"]
    assert [metric.name.tag for metric in experiment.metric_infos] == results
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    assert plugin_data(events, "_hparams_/session_end_info").session_end_info.status == 1  # STATUS_SUCCESS
    assert ("val/loss", STEPS) in scalars(run), "what the page shows beside them"
    assert len(list(run.rglob("events.out.tfevents.*"))) == 1, "a second file would be a second run on the page"


def test_the_projector_holds_the_token_table_and_its_tokens(run: Path) -> None:
    config = text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    table = np.loadtxt(run / embedding.tensor_path, delimiter="\t")
    weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]["model.token_embedding.weight"]
    np.testing.assert_allclose(table, weights.numpy(), atol=1e-5)
    lines = (run / embedding.metadata_path).read_text(encoding="utf-8").split("\n")
    header, *rows = csv.reader(lines[:-1], delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["token", "id", "in training text"]
    assert len(rows) == 300, "a token that breaks its line would shift all that follow"
    tokenizer = Checkpoint.read(run / "checkpoints/last.ckpt").tokenizer()
    assert [int(number) for _, number, _ in rows] == list(range(300))
    for token, number, _ in rows:
        if (text := tokenizer.decode_bytes(int(number))).isalnum() and text.isascii():
            assert token == text.decode()
    assert sum(int(count) for *_, count in rows) == 18369, "the tokens that fit said are in the training text"


def test_what_is_said_ends_with_the_next_commands(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    assert re.search(r"layer diagnostics: runs/tiny/version_0/layers.json; measuring took [\d.]+% of the", said)
    assert "resume:" in said.splitlines()[-1]
    assert "18,369 tokens" in said


def test_all_of_it_can_be_turned_off(folder: Path) -> None:
    """No logger and no diagnostics: nothing is drawn, nothing fails, and only what a run needs is left."""
    elsewhere = folder / "off"
    elsewhere.mkdir()
    off = ("--trainer.logger", "false", "--diagnostics.enabled", "false", "--trainer.max_steps", "10")
    must_run("fit", "--config", "../tiny.yaml", *off, cwd=elsewhere)
    checkpoints = {"last.ckpt", "last.previous.ckpt", "best.ckpt"}
    expected = {*checkpoints, "config.yaml", "metrics.jsonl", "bpe-300.tiktoken"}
    assert {path.name for path in elsewhere.rglob("*") if path.is_file()} == expected


def test_a_model_with_layers_without_attention_patterns_trains_and_logs_all_but_their_picture(tmp_path: Path) -> None:
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=4, val_check_interval=2)
    content["diagnostics"] = {"enabled": True}
    content["model"]["init_args"]["attention"] = ["delta_net", "full"]
    write_config(tmp_path / "tiny.yaml", content)
    must_run("fit", "--config", "tiny.yaml", cwd=tmp_path)
    events = EventAccumulator(str(tmp_path / "runs/tiny/version_0"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert not any(tag.startswith("attention/") for tag in events.Tags()["images"])
    assert "samples/0/text_summary" in events.Tags()["tensors"]
    curves = {tag for tag in events.Tags()["scalars"] if tag.startswith("layers/attention_entropy/")}
    assert curves == {"layers/attention_entropy/layer_01"}
    assert "layers/token_cosine/layer_02" in events.Tags()["scalars"]
