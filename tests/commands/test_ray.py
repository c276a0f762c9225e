"""``prepare`` and ``study`` on a Ray cluster of two machines, of which one is killed: the results are those of one."""

import json
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.prepare_helpers import config_of, contents, prepare_here, write_texts
from tests.processes import must_run, run_command, start_fresh_command, tiny_config, tiny_corpus, write_config
from tests.ray_cluster import LocalCluster, local_cluster, wait_until

pytest.importorskip("ray", reason="needs the extra cluster")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as cluster:
        yield cluster


def test_a_corpus_prepared_on_a_cluster_is_the_same_to_the_bit(cluster: LocalCluster, tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(500)]
    write_texts(tmp_path / "a.jsonl", [" ".join(draw.choices(words, k=12)) for _ in range(5 * 4096)])
    config = str(tmp_path / config_of(tmp_path / "config.yaml", str(tmp_path / "a.jsonl")))
    process = start_fresh_command(
        "prepare", "--config", config, "--output", "there", "--ray", cluster.address, cwd=tmp_path
    )
    parts = tmp_path / "there.partial/0-a"
    wait_until(lambda: process.poll() is not None or list(parts.glob("part-*.json")))
    assert process.poll() is None, process.communicate()[0]
    cluster.kill_one()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    cluster.add()
    prepare_here("--config", config, "--output", str(tmp_path / "here"))
    assert len(list((tmp_path / "here/0-a").glob("*.arrow"))) == 5
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def results(folder: Path) -> list[dict[str, Any]]:
    """The cells of a study without what names the machine and measures its time."""
    cells = json.loads((folder / "results.json").read_text())["cells"]
    timed = ("cost/", "wall_seconds", "train/tokens_per_second", "train/mfu", "layers/share_of_time")
    return [
        {
            **{key: cell[key] for key in ("cell", "settings", "digest", "status")},
            "values": {tag: value for tag, value in cell["values"].items() if not tag.startswith(timed)},
        }
        for cell in cells
    ]


def test_a_study_on_a_cluster_gives_the_report_of_one_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    content = tiny_config(tiny_corpus(tmp_path / "corpus.jsonl"), max_steps=80, val_check_interval=80)
    content["checkpoints"] = {"every_n_steps": 2}
    write_config(tmp_path / "tiny.yaml", content)
    study = {
        "name": "tiny",
        "base": ["tiny.yaml"],
        "grid": {"model.init_args.n_layer": [1, 2]},
        "measure": ["val/loss"],
    }
    write_config(tmp_path / "study.yaml", study)
    call = ("study", "--config", "study.yaml", "--folder")
    process = start_fresh_command(*call, "there", "--ray", cluster.address, cwd=tmp_path)
    saved = tmp_path / "there/cells"
    wait_until(lambda: process.poll() is not None or len(list(saved.glob("*/version_0/checkpoints/last.ckpt"))) == 2)
    assert process.poll() is None, process.communicate()[0]
    cluster.kill_one()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert len(list(saved.glob("*/version_1"))) == 1, "the cell of the machine that was killed was to be resumed"
    must_run(*call, "here", cwd=tmp_path)
    assert results(tmp_path / "there") == results(tmp_path / "here")
    assert (tmp_path / "there/report.html").exists()


def test_what_is_no_cluster_is_refused_in_one_line(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", ["a text"])
    config = config_of(tmp_path / "config.yaml", "a.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
        for address, message in (
            (closed, f"--ray {closed}: no Ray cluster answers there"),
            ("here", "--ray is 'here'"),
        ):
            done = run_command("prepare", "--config", config, "--output", "out", "--ray", address, cwd=tmp_path)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr.splitlines()[-1]
    done = run_command("study", "--config", "x.yaml", "--ray", "auto", "--slurm", cwd=tmp_path)
    assert done.returncode == 2


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gpt.cluster import connected
    from lightning_gpt.errors import CallError

    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(CallError, match=r"needs the extra cluster: pip install -e '.\[cluster\]'"),
        connected("auto"),
    ):
        pass
