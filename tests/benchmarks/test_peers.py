"""Each project is built to the same sizes and trained; one that is not there is said to be, with what to do."""

import math
import resource
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.workload import Spec, Workload
from lightning_gpt.kept_memory import can_keep

HERE = ("ours", "nanoGPT", "Hugging Face")


def spec_of(project: str, workload: Workload, peer_dir: Path, n_layer: int = 2) -> Spec:
    return Spec(project=project, n_layer=n_layer, workload=workload, peer_dir=str(peer_dir))


@pytest.mark.parametrize("project", HERE)
def test_a_step_trains(project: str, workload: Workload, peer_dir: Path) -> None:
    subject = peers.build(spec_of(project, workload, peer_dir))
    losses = []
    for _ in range(12):
        with torch.no_grad():
            losses.append(float(subject._loss(subject.ids, subject.targets)))
        subject.step()
    assert losses[0] == pytest.approx(math.log(300), rel=0.3)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_ours_and_hugging_face_have_the_same_weights(workload: Workload, peer_dir: Path) -> None:
    sizes = [
        sum(p.numel() for p in peers.build(spec_of(project, workload, peer_dir)).model.parameters())
        for project in ("ours", "Hugging Face")
    ]
    assert sizes[0] == sizes[1]


def test_hugging_face_predicts_the_same_targets(workload: Workload, peer_dir: Path) -> None:
    """Its loss takes targets that are shifted already, as all others', and not ids to be shifted again."""
    subject = peers.build(spec_of("Hugging Face", workload, peer_dir))
    logits = subject.model(subject.ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), subject.targets.flatten())
    torch.testing.assert_close(subject._loss(subject.ids, subject.targets), expected)


@pytest.mark.parametrize("project", HERE)
def test_generation_gives_the_tokens_that_are_asked_for(project: str, workload: Workload, peer_dir: Path) -> None:
    subject = peers.build(spec_of(project, workload, peer_dir))
    assert subject._generate is not None
    with torch.inference_mode():
        grown = subject._generate(subject.prompts, 5)
    assert isinstance(grown, torch.Tensor)
    assert grown.shape == (2, workload.prompt + 5)


def test_bf16_is_an_autocast_of_the_forward_pass(workload: Workload, peer_dir: Path) -> None:
    plain = spec_of("ours", workload, peer_dir)
    subject, mixed = peers.build(plain), peers.build(replace(plain, bf16=True))
    subject.step()
    mixed.step()
    weights = [dict(each.model.named_parameters())["blocks.0.ffn.up.weight"] for each in (subject, mixed)]
    assert weights[1].dtype == torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-3)


def test_what_a_project_prints_is_no_result(
    workload: Workload, peer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers.build(spec_of("nanoGPT", workload, peer_dir))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("project", "given", "reason"),
    [
        ("nanoGPT", None, "--peer_dir is not given: a folder that contains nanoGPT/model.py"),
        ("minGPT", None, "--peer_dir is not given: a folder that contains minGPT/mingpt/model.py"),
        ("minGPT", "empty", "empty/minGPT/mingpt/model.py does not exist"),
    ],
)
def test_what_is_missing_is_said(project: str, given: str | None, reason: str) -> None:
    assert peers.missing(project, given) == reason


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.missing("Hugging Face", None) == "transformers is not installed (pip install transformers)"
    assert "--litgpt_python" in str(peers.missing("litgpt", None))
    assert peers.missing("ours", None) is None


def test_a_spec_goes_to_another_process_and_back(workload: Workload, peer_dir: Path) -> None:
    spec = spec_of("ours", workload, peer_dir)
    assert Spec.from_values(asdict(spec)) == spec


@pytest.mark.skipif(not can_keep(), reason="needs GNU's C library")
def test_a_timed_step_of_ours_leaves_no_memory_that_others_would_find(workload: Workload, peer_dir: Path) -> None:
    subject = peers.build(spec_of("ours", replace(workload, dim=256, n_head=1, vocab_size=50257), peer_dir, n_layer=1))
    assert subject.timed_step() > 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(50257, 256).add_(1.0)  # as large as the gradient of the embeddings, which the step has freed
    new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert new > 0.9 * 4 * 256 * 50257 / resource.getpagesize()
