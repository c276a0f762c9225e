"""``lightning-gpt generate``: continue a prompt, or many, from a checkpoint."""

import sys
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call, refuse_unused
from lightning_gpt.commands.device import named_device
from lightning_gpt.commands.prompt_lines import RequestLine, as_json, ids_of, read_lines, write_lines
from lightning_gpt.console import say
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference.batch import TextRequest, continue_texts
from lightning_gpt.inference.prompts import require_utf8
from lightning_gpt.inference.streaming import stream_text
from lightning_gpt.json_text import to_json
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.decoding.beam_search import Beams, LengthPenalty, beam_search
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.models.decoding.rules.rule import PenaltyFactor, PenaltyTerm
from lightning_gpt.models.decoding.sampling import NewTokens, Sampling
from lightning_gpt.models.decoding.speculative import Guesses
from lightning_gpt.models.decoding.text import TextStream
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.options import NotNegative, Range, Rows, Seed, Share, ShareAboveZero, TokenId, VocabSize
from lightning_gpt.waiting import Waiting

TopLogprobs = Annotated[int, Range(0, 1000)]
Precision = Literal["fp32", "bf16", "int8"]


_OF_STRATEGIES: dict[str, set[str]] = {
    "strategy multinomial": {"temperature", "top_k", "top_p", "min_p", "seed"},
    "strategy greedy": set(),
    "strategy beam": {"beams", "length_penalty"},
}
_OF_DRAFTS: dict[str, set[str]] = {"a draft": {"n_guess"}, "no draft": set()}
_OF_PROMPTS: dict[str, set[str]] = {"prompts": {"batch_size"}, "no prompts": set()}
"""Options that are read in some forms of the command only."""


def generate(
    checkpoint: str,
    prompt: str = "",
    ids: list[TokenId] | None = None,
    prompts: str | None = None,
    output: str | None = None,
    chat: bool = False,
    max_new_tokens: NewTokens = 100,
    strategy: Literal["multinomial", "greedy", "beam"] = "multinomial",
    temperature: NotNegative = 0.8,
    top_k: VocabSize | None = None,
    top_p: ShareAboveZero | None = None,
    min_p: Share | None = None,
    repetition_penalty: PenaltyFactor | None = None,
    frequency_penalty: PenaltyTerm | None = None,
    presence_penalty: PenaltyTerm | None = None,
    rules: list[str | dict[str, Any]] | None = None,
    beams: Beams = 4,
    length_penalty: LengthPenalty = 1.0,
    stop: list[str] | None = None,
    logprobs: TopLogprobs | None = None,
    seed: Seed = 0,
    batch_size: Rows = 16,
    precision: Precision = "fp32",
    device: str = "cpu",
    draft: str | None = None,
    n_guess: Guesses = 4,
    exit_confidence: ShareAboveZero | None = None,
) -> None:
    """Continue a prompt; text streams to standard output until <|endoftext|>, a stop string or max_new_tokens.

    With --prompts, many prompts are continued in batches, from JSON lines to JSON lines.

    Args:
        checkpoint: A checkpoint written by fit or convert, such as runs/quickstart/version_0/checkpoints/last.ckpt.
        prompt: Text to continue; if empty, the model starts a new document.
        ids: Token ids to continue instead of a prompt.
        prompts: A file of JSON lines instead of a prompt, each an object with prompt, messages or ids, and any of id,
            seed, max_new_tokens, stop and the options of sampling for this line alone.
        output: The file of JSON lines to make from prompts; standard output if omitted.
        chat: Whether the prompt is a user's message, to be answered by the tokenizer's chat template.
        max_new_tokens: Maximum number of tokens to generate.
        strategy: multinomial samples each token from the model's distribution; greedy takes the most likely one; beam
            follows the likeliest texts.
        temperature: Divides the logits before sampling: below 1 sharpens the distribution, above 1 flattens it.
        top_k: Sample only from the k most likely tokens.
        top_p: Sample only from the smallest set of tokens whose total probability reaches p.
        min_p: Sample only from tokens at least p times as likely as the most likely one.
        repetition_penalty: Divides positive logits of tokens in prompt and new text, and multiplies negative ones.
        frequency_penalty: Subtracted from the logit of a token for each time that it has been generated.
        presence_penalty: Subtracted from the logit of each token that has been generated.
        rules: Further rules of sampling by name and options, such as those of a module named with --trust.
        beams: Number of texts that strategy beam follows.
        length_penalty: Power of the length by which strategy beam divides a text's log-probability.
        stop: Stop strings; the text ends before the first of them.
        logprobs: Print a JSON object with the log-probability of each token and of this many of the likeliest ones.
        seed: Seed for sampling; without a draft the draws are the same in any batch and on any device, where only the
            rounding of logits can change a token.
        batch_size: Number of prompts continued together.
        precision: Precision of the weights: fp32 as trained; bf16 and int8 (by row) are faster and change the
            probabilities slightly.
        device: Where the model runs: cpu, cuda, cuda:N or mps.
        draft: Checkpoint of a smaller model with the same tokenizer, for speculative decoding; the probabilities stay
            the same.
        n_guess: Number of tokens the draft guesses at a time.
        exit_confidence: Skip the remaining layers once the most likely token leads the second by this probability; the
            average number of layers is reported.
    """
    options = dict(locals())
    where = named_device(device)
    _check_combinations(options)
    sampling = {each.name: options[each.name] for each in fields(Sampling) if each.name in options}
    sampling |= {"temperature": 0.0 if strategy == "greedy" else temperature, "rules": tuple(rules or ())}
    checked = Sampling(**sampling)
    line = {"prompt": prompt} if ids is None else {"ids": ids}
    defaults = {"max_new_tokens": max_new_tokens, "stop": tuple(stop or ()), "seed": seed, "logprobs": logprobs}
    form = f"strategy {strategy}"
    unread = (
        {"seed", *sampling} if strategy == "beam" else _OF_STRATEGIES["strategy multinomial"] - _OF_STRATEGIES[form]
    )
    if prompts is None:
        require_utf8("prompt", prompt)
    lines = [RequestLine(line, {}, chat)] if prompts is None else read_lines(prompts, chat, sampling, unread, form)
    read = Checkpoint.read(checkpoint)
    model, tokenizer = rounded(read.build(), precision).to(where), read.tokenizer()
    early_exit = None if exit_confidence is None else _exiting(model, exit_confidence)

    def requested(of: RequestLine) -> TextRequest:
        own = {name: value for name, value in of.options.items() if name in sampling}
        others = {name: value for name, value in of.options.items() if name not in sampling}
        rule = Sampling(**{**sampling, **own}) if own else checked
        start = ids_of(of, model, tokenizer).to(where)
        return TextRequest(**{"ids": start, "sampling": rule, **defaults, **others})

    def continued(requests: list[TextRequest]) -> list[dict[str, Any]]:
        if strategy == "beam":
            return [_beams(model, tokenizer, each, beams, length_penalty) for each in requests]
        texts = continue_texts(model, tokenizer, requests, early_exit)
        return [as_json(text, tokenizer) for text in texts]

    if prompts is not None:
        write_lines(lines, [requested(each) for each in lines], continued, output, batch_size)
    elif logprobs is not None:
        print(to_json(continued([requested(lines[0])])[0]))
    else:
        request = requested(lines[0])
        sys.stdout.write("" if chat else prompt if ids is None else tokenizer.decode(ids))
        if strategy == "beam":
            sys.stdout.write(continued([request])[0]["text"])
        else:
            drafting = None if draft is None else rounded(Checkpoint.read(draft).build(), precision).to(where)
            _stream(model, tokenizer, request, drafting, n_guess, early_exit)
        sys.stdout.write("\n")
    if early_exit is not None:
        say(f"early exit: {early_exit.layers_per_token:.2f} of {early_exit.config.n_layer} layers per token on average")


def _stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: TextRequest,
    draft: LanguageModel | None,
    n_guess: int,
    early_exit: EarlyExit | None,
) -> None:
    pieces = stream_text(
        *(model, tokenizer, request.ids, request.max_new_tokens, request.sampling, request.seed),
        draft=draft,
        n_guess=n_guess,
        early_exit=early_exit,
        stop=request.stop,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _beams(
    model: LanguageModel, tokenizer: Tokenizer, request: TextRequest, beams: int, length_penalty: float
) -> dict[str, Any]:
    """The best text of a beam search, and all that were found."""
    with evaluating(model):
        found = beam_search(model, request.ids[None], request.max_new_tokens, beams, length_penalty, tokenizer.ends)
    texts = []
    for beam in found:
        stream = TextStream(tokenizer, request.stop)
        text = "".join(map(stream.add, beam.tokens)) + stream.close()
        texts.append({"text": text, "tokens": list(beam.tokens), "score": beam.score})
    best = texts[0] if texts else {"text": "", "tokens": []}
    return {"text": best["text"], "tokens": best["tokens"], "beams": texts}


def _check_combinations(options: dict[str, Any]) -> None:
    """Refuse options that say different things.

    Raises:
        CallError: Names the two options and what to leave out.
    """

    def given(name: str) -> bool:
        value = options[name]
        return value is not None and value is not False and value != ""

    shaping = ("top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "rules")
    pairs = [
        *(("prompts", other) for other in ("prompt", "ids", "draft")),
        *(("ids", other) for other in ("prompt", "chat")),
        *(("draft", other) for other in ("exit_confidence", "logprobs")),
    ]
    for one, other in pairs:
        if given(one) and given(other):
            raise CallError(f"{one} and {other} cannot be combined: leave one of them out")
    if options["strategy"] == "beam":
        for other in (*shaping, "draft", "exit_confidence", "logprobs"):
            if given(other):
                raise CallError(f"strategy beam and {other} cannot be combined: leave one of them out")
    refuse_unused(generate, options, _OF_STRATEGIES, f"strategy {options['strategy']}")
    refuse_unused(generate, options, _OF_DRAFTS, "a draft" if given("draft") else "no draft")
    refuse_unused(generate, options, _OF_PROMPTS, "prompts" if given("prompts") else "no prompts")
    if "" in (options["stop"] or ()):
        raise CallError("stop has an empty text; leave it out")
    if given("output") and not given("prompts"):
        raise CallError("output is the file made from prompts; without prompts, redirect standard output")


def _exiting(model: LanguageModel, confidence: float) -> EarlyExit:
    """The model with early exit."""
    if not isinstance(model, GPT):
        raise CallError(f"exit_confidence needs a GPT; this is a {type(model).__name__}")
    return EarlyExit(model, confidence)


def rounded(model: LanguageModel, precision: str) -> LanguageModel:
    """The model with its weights converted to ``precision``."""
    if precision == "int8":
        return int8(model)
    return model.to(torch.bfloat16) if precision == "bf16" else model


def run(args: list[str]) -> None:
    """Parse ``args`` and generate text."""
    options = parse_function_call(generate, "generate", args)
    with Waiting():
        generate(**options)
