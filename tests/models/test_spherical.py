"""nGPT: its blocks, its head and its attention equal the paper's equations; how they start; what they are not for."""

from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.suited import require_suited
from tests.models import slopes
from tests.models.helpers import random_ids
from tests.models.layers import normal
from tests.models.slopes import Array, State, assert_equals_reference
from tests.models.variants import NGPT, SIZES, build, fresh
from tests.reference import ngpt


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_the_model_and_its_gradient_equal_the_paper(
    n_kv_head: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "STEP", 1e-6)  # the norms of short vectors are steep
    attention = {"kind": "spherical", "n_kv_head": n_kv_head}
    model, ids = build({**NGPT, "attention": attention}, attention_backend=backend), random_ids(17, 2, 7)

    def reference(h: Array, state: State) -> Array:
        return ngpt.logits(h, state, 2, 4, n_kv_head)

    assert_equals_reference(
        model, reference, normal(2, 7, 16), run=lambda h: model.head(model.run(h, model.context(ids)))
    )


def test_the_loss_is_that_of_the_logits_and_so_are_its_gradients() -> None:
    """The fused loss takes the product of the factors and the matrix for its matrix."""
    ids, targets = random_ids(17, 2, 9), random_ids(17, 2, 9, seed=2)
    gradients = []
    for fused in (True, False):
        model = build(NGPT)
        plain = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss = model.loss(ids, targets) if fused else plain
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)


def test_all_factors_start_at_what_the_paper_says_and_the_stream_has_length_one() -> None:
    model = fresh(NGPT).double()
    block = model.blocks[0]
    for name, wanted in {"attention_step": 0.25, "ffn_step": 0.25}.items():
        torch.testing.assert_close(getattr(block, name), torch.full((16,), wanted, dtype=torch.float64))
    with model.record() as trace:
        model(random_ids(17, 2, 9))
    for name in ("blocks.0.after_attention", "blocks.1.after_ffn", "blocks.1.attention.q", "blocks.1.attention.k"):
        torch.testing.assert_close(trace[name].norm(dim=-1), torch.ones_like(trace[name][..., 0]))
    wide = GPT(GPTConfig(**{**SIZES, **NGPT, "dim": 64}))
    h = normal(1, 3, 64).float()
    torch.testing.assert_close(wide.head(h), h @ wide.head.linear.weight.mT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "spherical", "qk_norm": "rms"}, "norms queries and keys itself; use qk_norm none"),
        ({"attention": {"kind": "spherical", "score_width": 3.0}}, "and has no score_width: leave it out"),
        ({"ffn": {"kind": "moe", "expert": "spherical_swiglu"}}, "ffn expert is 'spherical_swiglu'; it must be one of"),
        ({"logit_scale": True}, "logit_scale needs an output head of its own: set tie_embeddings to false"),
        ({"logit_scale": True, "tie_embeddings": False, "head_bias": True}, "logit_scale and head_bias cannot be"),
        ({"logit_scale": True, "tie_embeddings": False, "logit_softcap": 2.0}, "logit_scale and logit_softcap cannot"),
        ({"logit_scale": True, "tie_embeddings": False, "logit_divisor": 2.0}, "logit_scale and logit_divisor cannot"),
        ({"residual": "spherical", "zero_projections": True}, "it does not train from such a start"),
        ({"residual": "spherical", "token_routing": "mixture_of_depths"}, "not the stream plus an update"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        fresh(changes)
    assert message in str(refused.value)


def test_its_head_cannot_be_divided_and_can_be_sharded() -> None:
    require_suited(fresh(NGPT), Layout(shard=2))
    with pytest.raises(CallError, match=r"logit_divisor or logit_scale cannot be divided: use parallel\.shard"):
        require_suited(fresh(NGPT), Layout(tensor=2))
