"""``lightning-gpt explore`` as it is typed: what it says, serves and refuses."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.checkpoint_series import enlist, sums_of
from lightning_gpt.commands.explore import explore
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.serving import server
from tests.exploring.explored import gpt, ids_of, tokenizer, unpacked
from tests.processes import COMMAND, environment, start_forked


def save(model: LanguageModel, path: Path, **more: Any) -> Path:
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    described = {MODEL_KEY: model.describe(), "state_dict": weights}
    write_checkpoint({**described, "TextData": {"tokenizer": tokenizer().state_dict()}, **more}, path)
    return path


def test_it_serves_a_checkpoint_and_another_until_it_is_stopped(tmp_path: Path) -> None:
    first, second = save(gpt(), tmp_path / "first.ckpt"), save(gpt(seed=1), tmp_path / "second.ckpt")
    output = tmp_path / "said.txt"
    command = [*COMMAND, "explore", "--checkpoint", str(first), "--compare", f"[{second}]", "--port", "0"]
    with output.open("wb") as file:
        process = start_forked(command, tmp_path, environment(), file, file)
    end = time.monotonic() + 120
    while (found := re.search(r"exploring .*first\.ckpt at (http://127\.0\.0\.1:\d+)/", output.read_text())) is None:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.02)
    try:
        address = found[1]
        assert httpx.get(f"{address}/api/start").json()["models"] == [str(first), str(second)]
        assert "<h1" in httpx.get(address).text
        for number, model in enumerate((gpt(), gpt(seed=1))):
            reply = httpx.post(f"{address}/api/look", json={"of": {"text": "ab cd", "model": number}}, timeout=60)
            with torch.no_grad():
                loss = model.token_nll(ids_of("ab cd")[:, :-1], ids_of("ab cd")[:, 1:]).mean().item()
            assert unpacked(reply.content)[0]["loss"] == pytest.approx(loss, rel=1e-5)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_what_cannot_be_explored_is_refused(tmp_path: Path) -> None:
    mixed = save(gpt(attention=["full", "delta_net"]), tmp_path / "mixed.ckpt")
    with pytest.raises(CallError, match=r"mixed\.ckpt has layers without softmax attention.*: 1$"):
        explore(checkpoint=str(mixed), port=0)
    with pytest.raises(CallError, match="seed 1 changes nothing with a checkpoint: leave seed out"):
        explore(checkpoint=str(mixed), seed=1, port=0)
    with pytest.raises(CallError, match=r"text is not UTF-8 text \(character 4\)"):
        explore(text="caf\udce9", port=0)
    with pytest.raises(CallError, match=r"checkpoint 'nothing\.ckpt'"):
        explore(checkpoint="nothing.ckpt", port=0)
    with pytest.raises(CallError, match="'run@last' is neither a path nor RUN@STEP"):
        explore(checkpoint="run@last", port=0)
    with pytest.raises(CallError, match=r"has no series of checkpoints; fit writes one with --checkpoints.series log"):
        explore(series=str(tmp_path), port=0)
    model, bare = gpt(), tmp_path / "bare.ckpt"
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    write_checkpoint({MODEL_KEY: model.describe(), "state_dict": weights}, bare)
    with pytest.raises(CallError, match="came without a tokenizer, so no text can be typed"):
        explore(checkpoint=str(bare), port=0)


def test_the_steps_of_a_series_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = tmp_path / "run/checkpoints/series"
    series.mkdir(parents=True)
    for step in (0, 4):
        enlist(series, sums_of(save(gpt(seed=step), series / f"step_{step}.ckpt", global_step=step)))
    apps: list[Any] = []
    monkeypatch.setattr(server, "serve_pages_until_stopped", lambda app, bound, message: apps.append(app))
    run = str(tmp_path / "run")
    explore(series=run, checkpoint=f"{run}@4", port=0)
    with TestClient(apps[0], base_url="http://127.0.0.1") as client:
        assert client.get("/api/start").json()["models"] == [f"{run}@4", f"{run}@0", f"{run}@4"]
        of, against = {"text": "ab cd"}, {"text": "ab cd", "model": 1}
        reply = client.post("/api/look", json={"of": of, "against": against, "show": "difference"})
        content, arrays = unpacked(reply.content)
        code = client.post("/api/code", json={"of": against, "row": 1}).text
    losses = [gpt(seed=n).token_nll(ids_of("ab cd")[:, :-1], ids_of("ab cd")[:, 1:]).mean().item() for n in (4, 0)]
    assert [content["loss"], content["before"]["loss"]] == pytest.approx(losses, rel=1e-5)
    assert abs(arrays["Q"]).max() > 0.1
    assert f"model = load({run!r}, step=0)" in code
    said: list[Any] = []
    exec(code, {"print": said.append})  # as it is pasted
    first = gpt(seed=0)
    with torch.no_grad(), first.record("blocks.0.attention.pattern") as trace:
        first(ids_of("ab cd"))
    assert said[0].tolist() == trace["blocks.0.attention.pattern"][0, 0, 1].tolist()
