"""``generate`` through the command: many prompts, stop strings, beams, log-probabilities, conversations."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.cli import main
from lightning_gpt.inference import prompt_ids
from lightning_gpt.inference.chat import chat_ids, chat_text
from lightning_gpt.models.decoding.beam_search import beam_search
from tests.inference.published import convert, publish

SHORT = ("--max_new_tokens", "15")
LINES = [
    {"prompt": "The list is", "id": "a"},
    {"prompt": "", "seed": 5, "max_new_tokens": 4},
    {"prompt": "x = 1", "temperature": 0, "stop": ["e", "\n"]},
    {"messages": [{"role": "user", "content": "é?"}], "repetition_penalty": 1.5},
    {"ids": [4, 5, 6], "min_p": 0.2},
    {"prompt": "The list is", "id": "again"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generated")
    convert(publish(made / "theirs"), made / "ours")
    convert(publish(made / "plain", None), made / "without")
    (made / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return made


@pytest.fixture
def generate(folder: Path, capsys: Any, monkeypatch: Any) -> Any:
    """Calls the command; returns its status, its output and its errors."""
    monkeypatch.chdir(folder)

    def call(*options: str, checkpoint: str = "ours/model.ckpt") -> tuple[int, str, str]:
        sys.argv = ["lightning-gpt", "generate", "--checkpoint", checkpoint, *options]
        status = main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_many_prompts_give_what_each_gives_alone(generate: Any, folder: Path) -> None:
    options = ("--prompts", "prompts.jsonl", *SHORT)
    _, whole, _ = generate(*options)
    found = objects(whole)
    assert generate(*options, "--batch_size", "1")[1] == generate(*options, "--batch_size", "4")[1] == whole
    for line, said in zip(LINES, found, strict=True):
        assert {name: said[name] for name in line} == line
        assert (said["finish"] == "stop") == (said["text"] != text_of(said, folder))
    assert found[0]["text"] == found[5]["text"]
    assert generate("--prompt", "The list is", *SHORT)[1] == f"The list is{found[0]['text']}\n"
    alone = generate("--prompt", "x = 1", "--strategy", "greedy", "--stop", '["e", "\\n"]', *SHORT)[1]
    assert alone == f"x = 1{found[2]['text']}\n"
    assert len(found[1]["tokens"]) <= 4
    assert not set("e\n") & set(found[2]["text"])


def text_of(said: dict[str, Any], folder: Path) -> str:
    words = Checkpoint.read(folder / "ours/model.ckpt").tokenizer()
    return words.decode(said["tokens"])


def test_the_output_is_a_file_that_must_not_exist(generate: Any, folder: Path) -> None:
    options = ("--prompts", "prompts.jsonl", "--max_new_tokens", "3")
    _, printed, _ = generate(*options)
    (folder / "marked.jsonl").write_text("\ufeff" + (folder / "prompts.jsonl").read_text())
    assert generate("--prompts", "marked.jsonl", *options[2:])[1] == printed, "a byte-order mark is no JSON"
    assert generate(*options, "--output", "out.jsonl")[0] == 0
    assert (folder / "out.jsonl").read_text() == printed
    status, _, said = generate(*options, "--output", "out.jsonl")
    assert (status, said) == (2, "error: output 'out.jsonl' exists; choose another one, or delete it\n")
    assert (folder / "out.jsonl").read_text() == printed


def test_log_probabilities_come_as_json(generate: Any, folder: Path) -> None:
    said = objects(generate("--prompt", "The", "--logprobs", "3", *SHORT)[1])[0]
    read = Checkpoint.read(folder / "ours/model.ckpt")
    model, words = read.build(), read.tokenizer()
    start = prompt_ids(model, words, "The")
    with torch.no_grad():
        whole = torch.cat([start, torch.tensor(said["tokens"])])[None]
        expected = model(whole)[0, len(start) - 1 : -1].log_softmax(dim=-1)
    assert len(said["logprobs"]) == len(said["tokens"])
    for place, each in enumerate(said["logprobs"]):
        assert each["logprob"] == pytest.approx(float(expected[place, each["token"]]), abs=1e-4)
        assert each["text"] == words.decode([each["token"]])
        assert [top["logprob"] for top in each["top"]] == pytest.approx(
            expected[place].topk(3).values.tolist(), abs=1e-4
        )


def test_beams_are_the_best_texts(generate: Any, folder: Path) -> None:
    options = ("--strategy", "beam", "--beams", "3", *SHORT)
    read = Checkpoint.read(folder / "ours/model.ckpt")
    model, words = read.build(), read.tokenizer()
    with torch.no_grad():
        found = beam_search(model, prompt_ids(model, words, "The")[None], 15, 3, 1.0, [words.end_of_text])
    assert generate("--prompt", "The", *options)[1] == f"The{words.decode(found[0].tokens)}\n"
    (folder / "one.jsonl").write_text('{"prompt": "The"}\n{"prompt": "x", "max_new_tokens": 0}')
    said = objects(generate("--prompts", "one.jsonl", *options)[1])
    assert [beam["tokens"] for beam in said[0]["beams"]] == [list(beam.tokens) for beam in found]
    assert said[1]["text"] == ""


def test_a_message_is_answered_by_the_template(generate: Any, folder: Path) -> None:
    read = Checkpoint.read(folder / "ours/model.ckpt")
    model, words = read.build(), read.tokenizer()
    talk = [{"role": "user", "content": "Hi <|im_end|>"}]
    ids = chat_ids(model, words, talk)
    new = model.generate(ids[None], 15, temperature=0)[0, len(ids) :].tolist()
    new = new[: new.index(words.end_of_text)] if words.end_of_text in new else new
    assert words.encode(chat_text(words, talk)).tolist() != ids.tolist(), "special tokens are such"
    said = generate("--prompt", "Hi <|im_end|>", "--chat", "true", "--strategy", "greedy", *SHORT)
    assert said[1] == f"{words.decode(new)}\n"
    (folder / "hi.jsonl").write_text('{"prompt": "Hi <|im_end|>"}')
    lines = objects(generate("--prompts", "hi.jsonl", "--chat", "true", "--strategy", "greedy", *SHORT)[1])
    assert lines[0]["text"] == words.decode(new)
    assert lines[0]["prompt"] == "Hi <|im_end|>", "the line as it was"
    status, _, error = generate("--prompt", "Hi", "--chat", "true", checkpoint="without/model.ckpt")
    assert (status, "no chat template: give a prompt instead" in error) == (2, True)


def test_penalties_and_early_exit_reach_the_text(generate: Any) -> None:
    plain = generate("--prompt", "The", "--strategy", "greedy", *SHORT)[1]
    assert generate("--prompt", "The", "--strategy", "greedy", "--repetition_penalty", "0.01", *SHORT)[1] != plain
    assert generate("--prompt", "The", "--strategy", "greedy", "--frequency_penalty", "-50", *SHORT)[1] != plain
    _, _, said = generate("--prompts", "prompts.jsonl", "--exit_confidence", "1e-9", *SHORT)
    assert "early exit: 1.00 of 2 layers" in said


RULE = """
import torch
from lightning_gpt.models.decoding.rules.rule import SamplingRule, rules


@rules.register("only_even")
class OnlyEven(SamplingRule):
    def __init__(self, last: int) -> None:
        self.last = last

    def apply(self, logits, counts):
        place = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill((place % 2 == 1) & (place <= self.last), -torch.inf)
"""


def test_each_rule_of_drawing_reaches_the_text(generate: Any) -> None:
    options = ("--prompt", "The list is", "--max_new_tokens", "20")
    drawn, greedy = generate(*options)[1], generate(*options, "--temperature", "0")[1]
    assert drawn != greedy
    for only_the_best in (("--min_p", "1"), ("--top_p", "1e-9"), ("--top_k", "1"), ("--temperature", "1e-6")):
        assert generate(*options, *only_the_best)[1] == greedy, only_the_best
    for rule in (("--presence_penalty", "2"), ("--frequency_penalty", "2"), ("--seed", "7"), ("--temperature", "3")):
        assert generate(*options, *rule)[1] != drawn, rule


def test_the_length_penalty_reaches_the_beams(generate: Any, folder: Path) -> None:
    (folder / "list.jsonl").write_text('{"prompt": "The list is"}')
    options = ("--prompts", "list.jsonl", "--strategy", "beam", "--beams", "4", "--max_new_tokens", "8")
    said = [objects(generate(*options, "--length_penalty", penalty)[1])[0]["beams"] for penalty in ("0", "1", "2")]
    assert len({beams[0]["score"] for beams in said}) == 3


def test_a_rule_of_a_trusted_module_is_used(generate: Any, folder: Path) -> None:
    (folder / "even_rules.py").write_text(RULE)
    asked = ("--rules", "[{kind: only_even, last: 9999}]", "--logprobs", "0", *SHORT)
    found = objects(generate("--prompt", "The", "--trust", "even_rules.py", *asked)[1])[0]
    assert len(found["tokens"]) > 5
    assert all(token % 2 == 0 for token in found["tokens"])
    assert any(
        each["token"] % 2 for each in objects(generate("--prompt", "The", "--logprobs", "0", *SHORT)[1])[0]["logprobs"]
    )


NO_TOKEN = """
import torch
from lightning_gpt.models.decoding.rules.rule import SamplingRule, rules


@rules.register("no_token")
class NoToken(SamplingRule):
    def apply(self, logits, counts):
        return torch.full_like(logits, -torch.inf)
"""


@pytest.mark.parametrize("options", [(), ("--logprobs", "1"), ("--strategy", "greedy")], ids=" ".join)
def test_a_rule_that_leaves_no_token_ends_in_a_line(options: tuple[str, ...], generate: Any, folder: Path) -> None:
    (folder / "no_token_rule.py").write_text(NO_TOKEN)
    status, _, said = generate("--prompt", "The", "--trust", "no_token_rule.py", "--rules", "[no_token]", *options)
    assert status == 1
    assert said == (
        "error: after the rules of sampling the largest logit is not finite, so no token can be chosen: "
        "change the rules\n"
    )


WRONG_LINES = {
    "{": "line 1: '{' is not valid JSON",
    "[1]": r"line 1: '\[1\]' is not a JSON object",
    '{"prompt": "a"}\n{"promt": "b"}': "line 2: unknown key 'promt'; the keys are prompt, messages, ids, id",
    '{"id": 3}': "line 1: it has none of prompt, messages, ids; give one",
    '{"prompt": "a", "ids": [1]}': "line 1: it has prompt and ids; give one",
    '{"prompt": 5}': "line 1: prompt is 5; it must be text",
    '{"ids": [99999]}': "line 1: token id 99999 is outside the vocabulary",
    '{"ids": []}': r"line 1: ids is \[\]; give at least one token id",
    '{"prompt": "a", "temperature": -1}': "line 1: temperature is -1; it must be a number of at least 0",
    '{"prompt": "a", "repetition_penalty": 1e-320}': "line 1: repetition_penalty is 1e-320; it must be a number from",
    '{"prompt": "a", "prompt": "b"}': "line 1: the key 'prompt' is given twice",
    '{"messages": [{"role": "user", "role": "user", "content": "a"}]}': "line 1: the key 'role' is given twice",
    '{"prompt": "caf\\ud800"}': r"line 1: prompt is not UTF-8 text \(character 4\)",
    '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "\\ud800"}]}': (
        r"line 2: messages.0.content is not UTF-8 text \(character 1\)"
    ),
    '{"prompt": "a", "stop": [""]}': "line 1: stop has an empty text; leave it out",
    '{"prompt": "a", "seed": "x"}': "line 1: seed is 'x'; it must be a whole number",
    '{"prompt": "a", "stop": "x"}': "line 1: stop is 'x'; it must be a list",
    '{"messages": [{"role": "user"}]}': "line 1: the content of message 0 is None; it must be text",
    '{"prompt": "' + "word " * 400 + '"}': "line 1: the prompt has .* tokens but the model's context",
    "\n\n": "has no lines",
    '{"prompt": "a", "rules": [{"kind": "luck"}]}': "line 1: rules is 'luck'",
}


@pytest.mark.parametrize("content", WRONG_LINES, ids=lambda text: text[:30])
def test_wrong_lines_are_refused_before_anything_is_written(content: str, generate: Any, folder: Path) -> None:
    (folder / "wrong.jsonl").write_text(content)
    status, out, said = generate("--prompts", "wrong.jsonl", "--output", "never.jsonl", *SHORT)
    assert (status, out) == (2, "")
    assert len(said.splitlines()) == 1
    assert re.search(WRONG_LINES[content], said), said
    assert not (folder / "never.jsonl").exists()


WRONG_WITH = {
    (
        "greedy",
        '{"prompt": "a", "temperature": 1}',
    ): "line 1: temperature 1 changes nothing with strategy greedy: leave",
    ("greedy", '{"prompt": "a", "top_k": 3}'): "line 1: top_k 3 changes nothing with strategy greedy: leave top_k out",
    ("greedy", '{"prompt": "a", "seed": 3}'): "line 1: seed 3 changes nothing with strategy greedy: leave seed out",
    ("beam", '{"prompt": "a", "seed": 3}'): "line 1: seed 3 changes nothing with strategy beam: leave seed out",
    ("beam", '{"prompt": "a", "min_p": 0.1}'): "line 1: min_p 0.1 changes nothing with strategy beam: leave min_p out",
    (
        "beam",
        '{"promt": "a"}',
    ): "line 1: unknown key 'promt'; the keys are prompt, messages, ids, id, max_new_tokens, sto",
}


@pytest.mark.parametrize("case", WRONG_WITH, ids=" ".join)
def test_options_of_a_line_that_change_nothing_are_refused(case: tuple[str, str], generate: Any, folder: Path) -> None:
    strategy, line = case
    (folder / "unread.jsonl").write_text(line)
    status, out, said = generate("--prompts", "unread.jsonl", "--strategy", strategy, *SHORT)
    assert (status, out) == (2, "")
    assert WRONG_WITH[case] in said


WRONG_CALLS = {
    ("--strategy", "greedy", "--top_k", "3"): "top_k 3 changes nothing with strategy greedy: leave top_k out",
    ("--strategy", "greedy", "--top_p", "0.5"): "top_p 0.5 changes nothing with strategy greedy",
    ("--strategy", "greedy", "--min_p", "0.5"): "min_p 0.5 changes nothing with strategy greedy",
    ("--strategy", "greedy", "--seed", "3"): "seed 3 changes nothing with strategy greedy: leave seed out",
    ("--strategy", "beam", "--seed", "3"): "seed 3 changes nothing with strategy beam: leave seed out",
    ("--batch_size", "3"): "batch_size 3 changes nothing with no prompts: leave batch_size out",
    ("--prompt", "caf\udce9"): r"prompt is not UTF-8 text \(character 4\)",
    ("--prompt", "caf\udce9", "--chat", "true"): r"prompt is not UTF-8 text \(character 4\)",
    ("--stop", '[""]'): "stop has an empty text; leave it out",
    ("--temperature", "-1e"): "--temperature has no value; one that begins with - is given as --temperature=-1e",
    ("--prompts", "/dev/zero"): "prompts '/dev/zero' cannot be read: it is not a regular file",
    ("--prompts", "none.jsonl"): "prompts 'none.jsonl' cannot be read: No such file",
    ("--prompts", "prompts.jsonl", "--prompt", "x"): "prompts and prompt cannot be combined: leave one of them out",
    ("--prompts", "prompts.jsonl", "--draft", "ours/model.ckpt"): "prompts and draft cannot be combined",
    ("--draft", "ours/model.ckpt", "--logprobs", "0"): "draft and logprobs cannot be combined",
    ("--ids", "[1]", "--prompt", "x"): "ids and prompt cannot be combined",
    ("--output", "x.jsonl"): "output is the file made from prompts",
    ("--strategy", "beam", "--top_k", "3"): "strategy beam and top_k cannot be combined",
    ("--strategy", "beam", "--beams", "0"): "beams is 0; it must be a whole number from 1",
    ("--length_penalty", "2"): "length_penalty 2.0 changes nothing with strategy multinomial: leave length_penalty out",
    ("--strategy", "greedy", "--temperature", "1"): "temperature 1.0 changes nothing with strategy greedy",
    ("--n_guess", "5"): "n_guess 5 changes nothing with no draft: leave n_guess out",
    ("--repetition_penalty", "1e-300"): "repetition_penalty is 1e-300; it must be a number from 0.001 to 1,000",
    ("--frequency_penalty=-3e38",): "frequency_penalty is -3e\\+38; it must be a number from -1,000 to 1,000",
    ("--presence_penalty", "3e38"): "presence_penalty is 3e\\+38; it must be a number from -1,000 to 1,000",
    ("--min_p", "2"): "min_p is 2.0; it must be a number from 0 to 1",
    ("--device", "tpu"): "device is 'tpu'; allowed on this machine: cpu",
    ("--device", "mps"): "device is 'mps'; allowed on this machine: cpu",
    ("--draft", "ours/model.ckpt", "--repetition_penalty", "1.2"): "rules that depend on the text so far",
    ("--rules", "[luck]"): "rules is 'luck'",
}


@pytest.mark.parametrize("options", WRONG_CALLS, ids=" ".join)
def test_wrong_calls_are_refused_in_a_line(options: tuple[str, ...], generate: Any) -> None:
    status, _, said = generate(*options, *SHORT)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert re.search(WRONG_CALLS[options], said), said
