"""Tasks of lm-evaluation-harness through our model beside its own Hugging Face model on the same weights."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.cli import main
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.harness import HarnessModel
from lightning_gpt.evaluation.tasks import run_tasks, table_of, tasks_at
from lightning_gpt.inference.chat import chat_text
from tests.inference.published import convert, publish
from tests.interop.published_tokenizers import CORPUS

WORDS = CORPUS[3].split()
WINDOW = 96
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, dict[str, Any]] = {
    "ours_choice": {**CHOICE, "num_fewshot": 0},
    "ours_shots": {**CHOICE, "num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}, "fewshot_split": "test"},
    "ours_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "ours_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "e "], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "bleu"}, {"metric": "chrf"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    convert(publish(made / "theirs"), made / "ours")
    items = [
        {
            "question": " ".join(WORDS[number * 7 : number * 7 + 3 + number % 9]) + ("" if number % 3 else " "),
            "choices": [" " + " ".join(WORDS[number : number + 2]), WORDS[number + 3], " é🙂 " + WORDS[number]],
            "answer": number % 3,
            "text": " ".join(WORDS[number * 5 : number * 5 + (140 if number == 2 else 9)]),
        }
        for number in range(14)
    ]
    (made / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    for name, content in TASKS.items():
        data = {"data_files": {"test": str(made / "items.jsonl")}}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **content}
        (made / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> HarnessModel:
    read = Checkpoint.read(folder / "ours/model.ckpt")
    return HarnessModel(read.build(), read.tokenizer(), WINDOW, 4, torch.device("cpu"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    model = AutoModelForCausalLM.from_pretrained(folder / "theirs")
    words = AutoTokenizer.from_pretrained(folder / "theirs")
    return HFLM(pretrained=model, tokenizer=words, batch_size=4, max_length=WINDOW, device="cpu")


def test_figures_are_those_of_the_harness_with_hugging_face_s_model(
    folder: Path, ours: HarnessModel, theirs: HFLM
) -> None:
    loaded = tasks_at([str(folder / f"{name}.yaml") for name in TASKS], code=False)
    found = run_tasks(ours.model, ours.words, loaded, WINDOW, 4, torch.device("cpu"))
    loaded = tasks_at([str(folder / f"{name}.yaml") for name in TASKS], code=False)
    answer = simple_evaluate(theirs, tasks=loaded.tasks, task_manager=loaded.manager, bootstrap_iters=0)
    compared = 0
    for name, figures in found.items():
        assert figures.pop("items") == 14
        for metric, value in figures.items():
            if metric != "sample_len":
                expected = answer["results"][name].get(f"{metric},none", answer["results"][name].get(metric))
                assert value == pytest.approx(expected, rel=1e-4), (name, metric)
                compared += 1
    assert compared >= 9
    assert "ours_choice" in table_of(found)


def test_each_request_is_answered_as_theirs(ours: HarnessModel, theirs: HFLM) -> None:
    long = " ".join(WORDS[:150])
    pairs = [
        ("The list is ", "empty."),
        ("", "None"),
        ("x", " = 1"),
        (long, " and so on"),
        ("<|im_start|>user\nHi<|im_end|>", "\nanswer"),
        ("a", WORDS[5] * 9),
    ]
    for model in (ours, theirs):
        assert model.prefix_token_id == theirs.tokenizer.bos_token_id
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    for ours_said, theirs_said in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert ours_said[0] == pytest.approx(theirs_said[0], abs=1e-3)
        assert ours_said[1] == theirs_said[1]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (long, "é", "def f(): pass")]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=2e-3
    )
    greedy = {"until": ["\n"], "max_gen_toks": 20, "do_sample": False}
    prompts = [Instance("generate_until", {}, (text, greedy), 0) for text in (long, "The", "x = ", "é🙂")]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)


def test_greedy_continuations_are_recognised(ours: HarnessModel) -> None:
    context = "The list is"
    ids = torch.tensor([ours.tok_encode(context)])
    greedy = ours.model.generate(ids, 3, temperature=0)[0, ids.shape[1] :].tolist()
    other = [*greedy[:2], (greedy[2] + 1) % ours.words.vocab_size]
    answers = ours._loglikelihood_tokens([(None, ids[0].tolist(), each) for each in (greedy, other)])
    assert [answer[1] for answer in answers] == [True, False]


def test_drawn_continuations_repeat_with_a_seed_and_know_the_rules(ours: HarnessModel) -> None:
    rules = {"do_sample": True, "temperature": 0.9, "top_k": 40, "min_p": 0.01, "max_gen_toks": 15, "until": []}
    asked = [Instance("generate_until", {}, ("The", rules), 0)]
    first = ours.generate_until(asked)
    assert ours.generate_until(asked) == first
    thrice = ours.generate_until(asked * 3)  # as a task with repeats asks
    assert thrice[:1] == first
    assert len(set(thrice)) == 3
    other = HarnessModel(ours.model, ours.words, WINDOW, 4, torch.device("cpu"), seed=1)
    assert other.generate_until(asked) != first
    for wrong, said in (
        ({"num_beams": 4}, "a task asks for generation with num_beams; known are until"),
        ({"max_gen_toks": WINDOW}, f"a task asks for {WINDOW} new tokens, and the window has {WINDOW}"),
        ({"do_sample": True, "temperature": -1.0, "max_gen_toks": 5}, "temperature is -1.0; it must be"),
    ):
        with pytest.raises(CallError, match=said):
            ours.generate_until([Instance("generate_until", {}, ("The", wrong), 0)])


def test_conversations_are_rendered_by_the_template(ours: HarnessModel, theirs: HFLM) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    begun = [*talk, {"role": "assistant", "content": "The"}]
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == chat_text(ours.words, begun, answers=False)
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.tokenizer_name == ours.words.name


GOOD = {"task": "t", "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "x"}
WRONG: dict[str, tuple[str, str]] = {
    "missing": ("", r"task file 'missing.yaml' cannot be read: No such file"),
    "not yaml": ("task: [a\nb: }", r"task file 'not yaml.yaml', line 2 is not valid YAML"),
    "not a mapping": ("- a", r"does not contain a mapping"),
    "no name": ("dataset_path: json", r"task file 'no name.yaml' has no key 'task' with the task's name"),
    "no kind": ("task: t\noutput_type: poetry", r"output_type is 'poetry'; it must be one of loglikelihood"),
    "a function": ("task: t\nprocess_docs: !function mine.run", r"names the function 'mine.run': allow its code with"),
    "includes a function": ("include: a function.yaml\ntask: t", r"names the function 'mine.run'"),
    "includes itself": ("include: includes itself.yaml\ntask: t", r"includes itself"),
    "no data": (yaml.safe_dump(GOOD), r"task 'no data.yaml' cannot be loaded: "),
    "unknown metric": (
        yaml.safe_dump({**GOOD, "metric_list": [{"metric": "luck"}]}),
        r"the metric 'luck' is none of the harness's own, and would be loaded as a script",
    ),
    "a metric's script": (
        yaml.safe_dump({"include": "unknown metric.yaml", "metric_list": [{"metric": "acc", "hf_evaluate": True}]}),
        r"the metric 'acc' is none of the harness's own",
    ),
    "unknown field": ("UNKNOWN", r"task .* cannot be loaded: UndefinedError: 'nothing' is undefined"),
    "a template for Python": ("PYTHON", r"task .* cannot be loaded: SecurityError: access to attribute '__class__'"),
    "no such name": ("", r"task 'no_such_task_at_all' cannot be loaded: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tasks_are_refused_in_a_line(case: str, folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "a function.yaml").write_text(WRONG["a function"][0])
    content, expected = WRONG[case]
    template = {"UNKNOWN": "{{nothing.x}}", "PYTHON": "{{question.__class__.__mro__}}"}.get(content)
    if template is not None:
        data = {"data_files": {"test": str(folder / "items.jsonl")}}
        content = yaml.safe_dump({**GOOD, "dataset_kwargs": data, "doc_to_text": template, **TASKS["ours_text"]})
        content = yaml.safe_dump({**yaml.safe_load(content), "doc_to_target": template})
    if content:
        (folder / f"{case}.yaml").write_text(content)
    named = f"{case}.yaml"
    if case == "no such name":
        named, made = "no_such_task_at_all", lm_eval.tasks.TaskManager
        # reading the harness's own thousands of files takes a minute
        monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_defaults: made(include_defaults=False))
    sys.argv = ["lightning-gpt", "evaluate", "--checkpoint", "ours/model.ckpt", "--tasks", json.dumps([named])]
    status = main()
    said = capsys.readouterr().err.splitlines()
    line = [each for each in said if each.startswith("error: ")]
    assert status == 2, said
    assert len(line) == 1
    assert re.search(expected, line[0]), line[0]


def test_the_command_runs_a_task_on_a_few_items(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    options = ["--checkpoint", "ours/model.ckpt", "--tasks", '["ours_choice.yaml"]', "--limit", "5", "--window", "96"]
    sys.argv = ["lightning-gpt", "evaluate", *options, "--json", "true"]
    assert main() == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["ours_choice"]["items"] == 5
    assert 0 <= said["ours_choice"]["acc"] <= 1


def test_the_command_asks_as_a_user_of_a_chat_does(folder: Path, theirs: HFLM, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    tasks = tasks_at(["ours_choice.yaml"], code=False)
    wanted = simple_evaluate(
        theirs, tasks=tasks.tasks, task_manager=tasks.manager, bootstrap_iters=0, apply_chat_template=True
    )
    options = ["--checkpoint", "ours/model.ckpt", "--tasks", '["ours_choice.yaml"]', "--window", str(WINDOW)]
    sys.argv = ["lightning-gpt", "evaluate", *options, "--chat", "true", "--json", "true"]
    assert main() == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["ours_choice"]["acc"] == wanted["results"]["ours_choice"]["acc,none"]


def test_code_of_a_task_file_runs_when_allowed(folder: Path) -> None:
    (folder / "mine.py").write_text("def run(docs):\n    return docs.select(range(3))\n")
    data = {"data_files": {"test": str(folder / "items.jsonl")}}
    content = {**GOOD, "dataset_kwargs": data, **TASKS["ours_choice"]}
    file = folder / "with code.yaml"
    file.write_text(yaml.safe_dump(content) + "\nprocess_docs: !function mine.run\n")
    with pytest.raises(CallError, match="allow its code with --task_code true"):
        tasks_at([str(file)], code=False)
    assert len(tasks_at([str(file)], code=True).tasks[0].eval_docs) == 3
