"""A run of a mixture of depths logs how many tokens went through its blocks in validation."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import must_run, tiny_config, tiny_corpus, write_config


def test_the_share_that_went_through_is_logged_at_each_validation(tmp_path: Path) -> None:
    config = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=8, val_check_interval=4)
    config["model"]["init_args"] |= {"n_layer": 2, "depth": {"kind": "mixture", "capacity": 0.25}}
    write_config(tmp_path / "run.yaml", config)
    must_run("fit", "--config", "run.yaml", cwd=tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events.parent)).Reload()
    shares = board.Scalars("routing/share/layer_01")
    assert [event.step for event in shares] == [4, 8]
    assert all(0 <= event.value <= 1 for event in shares)
    assert "routing/share/layer_00" not in board.Tags()["scalars"]
    assert board.Scalars("depth/token_cosine/layer_02")[-1].value == pytest.approx(0, abs=1)
