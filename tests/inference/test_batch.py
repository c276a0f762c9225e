"""Tokens to text, many texts at once, and conversations as prompts."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoTokenizer

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference import prompt_ids, stream_text
from lightning_gpt.inference.batch import TextRequest, continue_texts
from lightning_gpt.inference.chat import chat_ids, chat_text
from lightning_gpt.models import LanguageModel, graph
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.text import TextStream, pieces
from tests.inference.published import convert, publish
from tests.models.helpers import captured_again

GPT2 = Tokenizer.gpt2()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("published")
    publish(made / "theirs")
    return made


@pytest.fixture(scope="module")
def model_and_words(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    read = Checkpoint.read(convert(folder / "theirs", folder / "ours"))
    return read.build(), read.tokenizer()


# --- tokens to text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["b"], ["cd", "abc"], ["🙂"], ["xyz", ""], ["é\n"], ["aab"], ["d🙂é"], ["é"]])
def test_a_text_ends_before_the_first_stop_string_however_it_is_cut(stop: list[str]) -> None:
    """Bytes as tokens: characters and stop strings are spread over several of them."""
    text = "aabcd🙂é\nend é"
    expected = min((text.split(each)[0] for each in stop if each), key=len, default=text)
    stream = TextStream(GPT2, stop)
    pieces = [stream.add(GPT2.ranks[bytes([byte])]) for byte in text.encode()] + [stream.close()]
    assert "".join(pieces) == expected
    assert stream.ended == (expected != text)
    if stream.ended:
        assert stream.add(GPT2.ranks[b"z"]) == stream.close() == ""


def test_what_cannot_become_a_stop_string_is_not_held_back() -> None:
    stream = TextStream(GPT2, ["abx"])
    pieces = [stream.add(GPT2.ranks[bytes([byte])]) for byte in b"yaabab"]
    assert pieces == ["y", "", "a", "", "ab", ""]
    assert stream.close() == "ab"


def test_the_end_of_the_text_gives_out_what_was_held_back() -> None:
    stream = TextStream(GPT2, ["abc"])
    assert stream.add(GPT2.ranks[b"a"]) == ""
    assert stream.add(GPT2.end_of_text) == "a"
    assert stream.ended


# --- many texts ------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"sampling": Sampling(), "max_new_tokens": 20},
    {"sampling": Sampling(temperature=0), "max_new_tokens": 9},
    {"sampling": Sampling(temperature=0.7, top_k=30, repetition_penalty=1.4), "max_new_tokens": 25, "seed": 3},
    {"sampling": Sampling(min_p=0.1, presence_penalty=0.5), "max_new_tokens": 17, "stop": ("e", "\n")},
    {"sampling": Sampling(top_p=0.8), "max_new_tokens": 0},
    {"sampling": Sampling(frequency_penalty=1.0), "max_new_tokens": 22, "seed": 9, "logprobs": 2},
]
PROMPTS = ["The list is", "x = 1", "", "def f(a, b):\n    return", "None", "A string or a number that is"]


def requests(model: LanguageModel, words: Tokenizer) -> list[TextRequest]:
    return [
        TextRequest(ids=prompt_ids(model, words, prompt), **options)
        for prompt, options in zip(PROMPTS, OPTIONS, strict=True)
    ]


def test_a_text_is_the_same_alone_streamed_and_in_every_batch(model_and_words: Any) -> None:
    model, words = model_and_words
    asked = requests(model, words)
    together = continue_texts(model, words, asked)
    for request, text in zip(asked, together, strict=True):
        streamed = stream_text(
            *(model, words, request.ids, request.max_new_tokens, request.sampling, request.seed), stop=request.stop
        )
        assert "".join(streamed) == text.text
    order = [5, 2, 0, 3]
    again = continue_texts(model, words, [asked[number] for number in order])
    assert [text.tokens for text in again] == [together[number].tokens for number in order]
    spy = mock.Mock(side_effect=captured_again)
    with mock.patch.object(graph, "GRAPH_DEVICES", ("cpu",)), mock.patch.object(graph, "capture", spy):
        captured = continue_texts(model, words, asked)
    assert spy.called, "the rows that end must have stayed in a captured batch"
    assert [text.tokens for text in captured] == [text.tokens for text in together]
    exiting = continue_texts(model, words, asked, EarlyExit(model, 1.0))
    assert [text.tokens for text in exiting] == [text.tokens for text in together]
    assert [text.finish for text in together].count("stop") >= 1
    assert together[4].tokens == []
    assert len({len(text.tokens) for text in together}) > 3, "rows must leave the batch at different times"


def test_log_probabilities_are_those_of_a_whole_pass(model_and_words: Any) -> None:
    model, words = model_and_words
    asked = requests(model, words)
    text = continue_texts(model, words, asked)[5]
    whole = torch.cat([asked[5].ids, torch.tensor(text.tokens)])[None]
    with torch.no_grad():
        expected = model(whole)[0, len(asked[5].ids) - 1 : -1].log_softmax(dim=-1)
    assert [each.token for each in text.logprobs] == text.tokens
    for place, each in enumerate(text.logprobs):
        assert each.logprob == pytest.approx(float(expected[place, each.token]), abs=1e-5)
        assert [value for _, value in each.top] == pytest.approx(expected[place].topk(2).values.tolist(), abs=1e-5)
    assert continue_texts(model, words, asked)[0].logprobs == []


# --- conversations ---------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Answer in one word.  "},
    {"role": "user", "content": "What is 'é🙂'?"},
    {"role": "assistant", "content": "A word.\n\nSure."},
    {"role": "user", "content": "And <|im_end|> then?"},
]


@pytest.mark.parametrize("messages", [TALK[:1], TALK[1:2], TALK])
def test_a_conversation_is_the_prompt_that_transformers_makes(
    messages: list[dict[str, str]], folder: Path, model_and_words: Any
) -> None:
    model, words = model_and_words
    theirs = AutoTokenizer.from_pretrained(folder / "theirs")
    assert chat_text(words, messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    expected = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert chat_ids(model, words, messages).tolist() == expected


FILTERS = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}" + (
    "{% set ns.n = ns.n + 1 %}{{ m | tojson }}{{ bos_token }}{% endfor %}{{ ns.n }}{{ messages[0].content.strip() }}"
    "{%- for m in messages %}{% if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content }} {% endgeneration %}\n"
    "{% endif %}{% endfor %}{{ messages | tojson(indent=2, sort_keys=true) }}"
    "{{ messages | tojson(separators=(',', ':')) }}"
)


@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_templates_are_found_where_they_may_stand_and_kept_both_ways(place: str, tmp_path: Path) -> None:
    source = publish(tmp_path / "theirs", FILTERS if place == "file" else None)
    config = json.loads((source / "tokenizer_config.json").read_text())
    if place != "file":
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": FILTERS}]
        config["chat_template"] = FILTERS if place == "config" else named
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    words = Checkpoint.read(convert(source, tmp_path / "ours")).tokenizer()
    theirs = AutoTokenizer.from_pretrained(source)
    assert chat_text(words, TALK) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    again = Tokenizer.from_file(words.save(tmp_path / "saved"))
    assert chat_text(again, TALK) == chat_text(words, TALK)


WRONG: list[tuple[Any, str]] = [
    ([], r"messages is \[\]; it must be a list of at least one message"),
    ("hello", "messages is 'hello'; it must be a list"),
    (["hello"], "message 0 is 'hello'; it must be an object with role and content"),
    ([{"role": "boss", "content": "x"}], "the role of message 0 is 'boss'; it must be one of system, user"),
    ([{"content": "x"}], "the role of message 0 is None"),
    ([{"role": "user"}], "the content of message 0 is None; it must be text"),
    ([{"role": "tool", "content": "x"}], "the chat template refuses the messages: no tools here"),
    ([{"role": "user", "content": "word " * 400}], "the prompt has .* tokens but the model's context"),
]


@pytest.mark.parametrize(("messages", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_conversations_are_refused(messages: Any, said: str, model_and_words: Any) -> None:
    with pytest.raises(CallError, match=said):
        chat_ids(*model_and_words, messages)


def test_a_tokenizer_without_a_template_and_one_that_reaches_for_python_are_refused(model_and_words: Any) -> None:
    with pytest.raises(CallError, match="'gpt2' has no chat template: give a prompt"):
        chat_text(GPT2, TALK)
    _, words = model_and_words
    reaching = ["{{ messages.__class__.__mro__ }}", "{{ messages[0].update({}) }}", "{{ 1 + 'a' }}", "{% for %}"]
    for template in reaching:
        with (
            mock.patch.dict(words.files, {"chat_template.jinja": template}),
            pytest.raises(CallError, match=r"the chat template (refuses|fails on) the messages"),
        ):
            chat_text(words, TALK)


def test_nothing_follows_a_stop_inside_a_token() -> None:
    """The token that completes the stop also begins a character, of which no more comes."""
    assert GPT2.decode_bytes(564) == b" \xe2\x80"
    assert "".join(pieces(TextStream(GPT2, [" "]), [*GPT2.encode("Hi").tolist(), 564])) == "Hi"
