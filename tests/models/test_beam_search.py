"""Beam search beside a search over every text, and beside that of transformers."""

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, graph
from lightning_gpt.models.decoding.beam_search import beam_search
from lightning_gpt.models.memory.gpt import gpt_with
from tests.models.helpers import captured_again, random_ids, randomise

VOCAB = 5
SIZES = {"n_layer": 2, "n_head": 2, "dim": 8, "block_size": 16, "vocab_size": VOCAB}


def model_of(**options: object) -> GPT:
    return randomise(GPT(GPTConfig(**{**SIZES, **options})), seed=3).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"attention": "linear"}, {"position": "rotary"}], ids=str)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_beams_enough_the_best_of_all_texts_is_found(options: dict, length_penalty: float) -> None:
    """Every text of four tokens over a vocabulary of five is scored here by whole passes."""
    model, ids, end = model_of(**options), random_ids(VOCAB, 1, 3), 2
    scores = {}
    with torch.no_grad():
        for length in range(1, 5):
            texts = torch.tensor(list(itertools.product(range(VOCAB), repeat=length)))
            logp = model(torch.cat([ids.expand(len(texts), -1), texts], dim=1)).log_softmax(dim=-1)
            own = logp[:, 2:-1].gather(2, texts[:, :, None])[..., 0].sum(dim=1)
            for text, total in zip(texts.tolist(), own.tolist(), strict=True):
                if end not in text[:-1] and (text[-1] == end or length == 4):
                    scores[tuple(text)] = total / length**length_penalty
        found = beam_search(model, ids, 4, 200, length_penalty, [end])
    best = sorted(scores, key=scores.__getitem__, reverse=True)
    assert [beam.tokens for beam in found[:5]] == best[:5]
    assert [beam.score for beam in found[:5]] == pytest.approx([scores[text] for text in best[:5]], abs=1e-5)
    assert len({len(beam.tokens) for beam in found}) > 1, "no text ends early: the end is not tried"


THEIRS = AutoConfig.for_model(
    "gpt2", vocab_size=31, n_embd=24, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4
)


@pytest.mark.cpu("its seeds were chosen for the weights that a CPU draws")
@pytest.mark.parametrize("n_ends", [1, 8])
@pytest.mark.parametrize(("beams", "length_penalty"), [(3, -1.0), (3, 1.0), (6, 0.0), (6, 2.0)])
def test_texts_and_scores_are_those_of_transformers(beams: int, length_penalty: float, n_ends: int) -> None:
    torch.manual_seed(2)
    theirs = AutoModelForCausalLM.from_config(THEIRS).eval()

    class Ours:
        """Their model in our interface, reading everything again at each step."""

        context_limit, can_be_graphed = 64, False

        def new_cache(self, capacity: int) -> mock.Mock:
            return mock.Mock(can_select=True, layers=[], kept=None)

        def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Any = None) -> Tensor:
            cache.kept = ids if cache.kept is None else torch.cat([cache.kept, ids], dim=1)
            cache.select = lambda rows: setattr(cache, "kept", cache.kept[rows])
            return theirs(cache.kept).logits[:, -1]

    ended = 0
    for seed in range(3):
        prompt = random_ids(31, 1, 5, seed=seed)
        with torch.no_grad():
            ends = theirs(prompt).logits[0, -1].topk(9).indices.tolist()[1 : 1 + n_ends]
            said = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=9,
                num_beams=beams,
                num_return_sequences=beams,
                do_sample=False,
                length_penalty=length_penalty,
                eos_token_id=ends,
                pad_token_id=30,
                return_dict_in_generate=True,
                output_scores=True,
                early_stopping=False,
            )
            found = beam_search(Ours(), prompt, 9, beams, length_penalty, ends)
        assert len(found) == beams
        for beam, text, score in zip(found, said.sequences[:, 5:].tolist(), said.sequences_scores, strict=True):
            assert list(beam.tokens) == text[: len(beam.tokens)]
            assert all(token == 30 for token in text[len(beam.tokens) :])
            assert beam.score == pytest.approx(float(score), abs=2e-5)
            ended += len(beam.tokens) < 9
    assert ended, "no text ends: the end is not tried"


@pytest.mark.cpu("it stands in for graphs on a device")
def test_one_beam_is_greedy_also_past_learned_positions_and_where_others_are_captured() -> None:
    model, ids = model_of(block_size=8), random_ids(VOCAB, 1, 3)
    greedy = model.generate(ids, 20, temperature=0)[0, 3:].tolist()
    spy = mock.Mock(side_effect=captured_again)
    with (
        torch.no_grad(),
        mock.patch.object(graph, "GRAPH_DEVICES", ("cpu",)),
        mock.patch.object(graph, "capture", spy),
    ):
        assert list(beam_search(model, ids, 20, 1)[0].tokens) == greedy
        assert not spy.called
        model.generate(ids, 20)
        assert spy.called


def test_wrong_calls_are_refused() -> None:
    model, ids = model_of(), random_ids(VOCAB, 1, 3)
    with pytest.raises(CallError, match="beams is 0; it must be"):
        beam_search(model, ids, 4, 0)
    with pytest.raises(CallError, match="length_penalty is 99; it must be"):
        beam_search(model, ids, 4, 2, 99)
    with pytest.raises(CallError, match="one prompt at a time, not 2"):
        beam_search(model, random_ids(VOCAB, 2, 3), 4, 2)
    remembering = gpt_with("segment", GPTConfig(**{**SIZES, "position": "rotary"}))
    with torch.no_grad(), pytest.raises(CallError, match="impossible with memory"):
        beam_search(remembering.eval(), ids, 4, 2)
    assert beam_search(model, ids, 0, 2) == []
