"""What layers say of their matrices: Muon, μP, growth and export rely on it, and on nothing else."""

from collections import Counter
from typing import Any

import pytest
import torch

from lightning_gpt.models import LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.layer import all_matrices
from tests.models.variants import CONFIGS, fresh, name_of

UNTIED: dict[str, Any] = {"tie_embeddings": False}
BY_PREDICTOR: dict[str, Any] = {"token_routing": {"kind": "mixture_of_depths", "decision": "predictor"}}


def assert_each_is_declared_once(model: LanguageModel) -> None:
    """Stacked biases of a mixture's experts have two dimensions as well: they are declared beside their matrices."""
    matrices = list(all_matrices(model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = Counter(names[id(matrix.weight)] for matrix in matrices)
    biases = Counter(names[id(matrix.bias)] for matrix in matrices if matrix.bias is not None)
    assert set(weights.values()) == {1}
    assert set(biases.values()) <= {1}
    assert not weights.keys() & biases.keys()
    wide = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert wide == weights.keys() | {name for name in biases if model.get_parameter(name).ndim >= 2}
    assert all(name.endswith("bias") for name in biases)


@pytest.mark.parametrize("changes", [*CONFIGS, UNTIED, BY_PREDICTOR], ids=name_of)
def test_every_parameter_of_two_or_more_dimensions_is_declared_by_a_layer_once(changes: dict[str, Any]) -> None:
    assert_each_is_declared_once(fresh(changes))


def test_so_are_those_of_the_single_head() -> None:
    assert_each_is_declared_once(SingleHeadModel(SingleHeadConfig(dim=8, vocab_size=17)))


@pytest.mark.parametrize("changes", [*CONFIGS, UNTIED, BY_PREDICTOR], ids=name_of)
def test_pieces_and_biases_have_the_rows_of_their_matrix(changes: dict[str, Any]) -> None:
    model = fresh(changes)
    parameters = {id(weight) for weight in model.parameters()}
    for matrix in all_matrices(model):
        rows = matrix.weight.shape[-2]
        assert not matrix.pieces or sum(matrix.pieces.values()) == rows
        assert torch.equal(torch.stack(list(matrix.each())).view_as(matrix.weight), matrix.weight)
        if matrix.bias is not None:
            assert id(matrix.bias) in parameters
            assert matrix.bias.shape == matrix.weight.shape[:-1]
