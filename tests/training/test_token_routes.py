"""A run of a mixture of depths logs the share of validation tokens that went through its blocks."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gpt import load
from lightning_gpt.analysis.layer_diagnostics import measure
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.models.head import IGNORED
from tests.processes import must_run, tiny_config, tiny_corpus, write_config


def test_the_share_that_went_through_is_logged_at_each_validation(tmp_path: Path) -> None:
    """Counted here from the routers' own decisions, by the weights of the last step."""
    corpus = tiny_corpus(tmp_path / "corpus.jsonl")
    config = tiny_config(corpus, max_steps=8, val_check_interval=4)
    config["diagnostics"] = {"enabled": True}
    config["model"]["init_args"] |= {"n_layer": 2, "token_routing": {"kind": "mixture_of_depths", "capacity": 0.25}}
    write_config(tmp_path / "run.yaml", config)
    must_run("fit", "--config", "run.yaml", cwd=tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events.parent)).Reload()
    shares = board.Scalars("routing/share/layer_01")
    assert [event.step for event in shares] == [4, 8]
    assert "routing/share/layer_00" not in board.Tags()["scalars"]

    model = load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")
    data = TextData(**{**config["data"], "sources": [Files(str(corpus))], "block_size": 32})
    data.setup("validate")
    decided = []
    for batch in data.val_dataloader():
        with torch.no_grad(), model.record(["blocks.1.router.through"]) as trace:
            model(batch["ids"])
        decided.append(trace["blocks.1.router.through"])
    through = torch.cat(decided)
    assert 0 < int(through.sum()) < through.numel(), "the decisions must differ to show anything"
    assert shares[-1].value == pytest.approx(float(through.double().mean()), abs=1e-7)

    # the layer diagnostics are those of the routed stream: 4 rows of the first validation tokens
    targets = data.evaluation("val").all_targets
    text = targets[targets != IGNORED]
    ids, following = (text[start : start + 128].view(4, 32) for start in (0, 1))
    expected = measure(Probe.take(model, ids, following))["token_cosine"][2]
    assert board.Scalars("layers/token_cosine/layer_02")[-1].value == pytest.approx(expected, abs=1e-6)
