"""Documents kept apart: each is computed as if it stood alone in its row."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention.mask import causal_mask, document_block_mask
from lightning_gpt.models.positions.scheme import positions_within

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2, 3, 3]])


def models() -> list[LanguageModel]:
    torch.manual_seed(0)
    sizes = {"dim": 16, "block_size": 12, "vocab_size": 50}
    made: list[LanguageModel] = [
        GPT(GPTConfig(n_layer=2, n_head=2, attention_backend=backend, **sizes)) for backend in ("manual", "sdpa")
    ]
    made += [SingleHeadModel(SingleHeadConfig(attention_backend=backend, **sizes)) for backend in ("manual", "sdpa")]
    for model in made:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return [model.double() for model in made]


def test_positions_restart_at_each_document() -> None:
    assert positions_within(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 4, 5, 0, 0, 1]]


@pytest.mark.parametrize(
    "model", models(), ids=lambda model: f"{type(model).__name__}-{model.config.attention_backend}"
)
def test_each_document_has_the_logits_that_it_has_alone(model: LanguageModel) -> None:
    ids = torch.randint(50, DOCUMENTS.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(1))
    logits = model(ids, DOCUMENTS)
    for row in range(2):
        for document in DOCUMENTS[row].unique():
            places = DOCUMENTS[row] == document
            torch.testing.assert_close(logits[row, places], model(ids[row, places][None])[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "model", models(), ids=lambda model: f"{type(model).__name__}-{model.config.attention_backend}"
)
def test_loss_and_its_gradient_are_those_of_the_documents_alone(model: LanguageModel) -> None:
    ids = torch.randint(50, DOCUMENTS.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(1))
    targets = ids.roll(-1, 1)
    together = torch.autograd.grad(model.loss(ids, targets, DOCUMENTS) * ids.numel(), list(model.parameters()))
    alone = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row in range(2):
        for document in DOCUMENTS[row].unique():
            places = DOCUMENTS[row] == document
            loss = model.loss(ids[row, places][None], targets[row, places][None]) * int(places.sum())
            for total, part in zip(alone, torch.autograd.grad(loss, list(model.parameters())), strict=True):
                total += part
    torch.testing.assert_close(together, tuple(alone), atol=1e-8, rtol=1e-8)


def test_recorded_pattern_never_crosses_documents() -> None:
    model = models()[1]
    with model.record(["blocks.*.attention.pattern"]) as trace:
        model(torch.zeros_like(DOCUMENTS), DOCUMENTS)
    for layer in range(2):
        pattern = trace["attention.pattern", layer]
        apart = DOCUMENTS[:, None, :, None] != DOCUMENTS[:, None, None, :]
        assert (pattern.masked_select(apart.expand_as(pattern)) == 0).all()
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


def test_one_document_is_the_plain_model() -> None:
    model = models()[1]
    ids = torch.randint(50, (2, 10), generator=torch.Generator(torch.get_default_device()).manual_seed(2))
    torch.testing.assert_close(model(ids, torch.zeros_like(ids)), model(ids), atol=1e-12, rtol=1e-12)


def test_block_mask_of_the_gpu_path_hides_what_the_plain_mask_hides() -> None:
    """``flex_attention`` with its block mask, uncompiled here, beside the fused kernel with booleans."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    documents = torch.randint(0, 2, (2, 200), generator=generator).cumsum(dim=1)
    q, k, v = (torch.randn(2, 3, 200, 16, generator=generator) for _ in range(3))
    same = documents[:, :, None] == documents[:, None, :]
    expected = scaled_dot_product_attention(q, k, v, attn_mask=(same & causal_mask(200))[:, None])
    found = flex_attention(q, k, v, block_mask=document_block_mask(documents))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
