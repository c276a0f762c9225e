"""A model of this package as one of lm-evaluation-harness (the extra ``eval``)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lightning_gpt.data.published_tokenizer import PublishedTokenizer
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.windows import ScoredWindow, scored_hidden
from lightning_gpt.inference.batch import TextRequest, continue_texts
from lightning_gpt.inference.chat import chat_text
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.double import double
from lightning_gpt.models.evaluating import evaluating

_NEW_TOKENS = 256
"""How many tokens a task gets that does not say; the harness's own number."""
_ROWS = 1024
"""Tokens whose logits are held at once."""
_RULES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")

Pair = tuple[Any, list[int], list[int]]
"""A request, the tokens of its context and those of its continuation."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Log-likelihoods and continuations for tasks, in batches of similar lengths.

    Args:
        model: The model, on ``device``.
        tokenizer: Its tokenizer.
        window: The most tokens that are read at once.
        batch_size: Requests that are read together.
        device: Where the model is.
        seed: Seed of sampling.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        window: int,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.words, self.max_length, self.batch_size = model, tokenizer, window, batch_size
        self._device, self.seed = device, seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.words.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What a continuation without context follows: the token that begins a text, or else the one that ends it."""
        begins = self.words.special_tokens.get("bos_token") if isinstance(self.words, PublishedTokenizer) else None
        ids = [] if begins is None else self._encoded(begins)
        return ids[0] if len(ids) == 1 else self.words.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, which the harness stores prompts under."""
        return self.words.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, special tokens in it as such; after the tokenizer's start unless told otherwise."""
        ids = self._encoded(string)
        start = list(self.words.start)
        if add_special_tokens is False or (add_special_tokens is None and ids[:1] == [self.prefix_token_id]):
            return ids
        return start + ids

    def _encoded(self, text: str) -> list[int]:
        marked = isinstance(self.words, PublishedTokenizer)
        ids: list[int] = (self.words.encode_marked(text) if marked else self.words.encode(text)).tolist()  # type: ignore[attr-defined]
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat template, of which there is one at most."""
        return (self.words.chat_template or "") if isinstance(self.words, PublishedTokenizer) else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt."""
        return chat_text(self.words, chat_history, add_generation_prompt)

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation given its context, and whether it is the greedy one."""
        windows = [self._window(context, continuation) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
        order = sorted(range(len(windows)), key=lambda number: -len(windows[number].ids))
        with evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for number, answer in zip(batch, self._scored([windows[each] for each in batch]), strict=True):
                    answers[number] = answer
        return answers

    def _window(self, context: list[int], continuation: list[int]) -> ScoredWindow:
        if not continuation:
            raise CallError("a task asks for the likelihood of an empty continuation")
        if len(continuation) > self.max_length:
            raise CallError(
                f"a task's continuation has {len(continuation)} tokens, more than the model's window of "
                f"{self.max_length}"
            )
        ids = torch.tensor((context + continuation)[-(self.max_length + 1) :])
        return ScoredWindow(ids, len(continuation), len(continuation))

    def _scored(self, windows: Sequence[ScoredWindow]) -> list[tuple[float, bool]]:
        states, targets, counts = scored_hidden(self.model, windows, self._device)
        logp, greedy = [], []
        for part, wanted in zip(torch.split(states, _ROWS), torch.split(targets, _ROWS), strict=True):
            logits = self.model.head(part).float()
            logp.append(logits.log_softmax(dim=-1).gather(-1, wanted[:, None])[:, 0])
            greedy.append(logits.argmax(dim=-1) == wanted)
        parts = zip(torch.split(torch.cat(logp), counts), torch.split(torch.cat(greedy), counts), strict=True)
        return [(float(double(values).sum()), bool(right.all())) for values, right in parts]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows that do not overlap, the first token given the prefix."""
        pairs: list[Pair] = []
        counts = []
        for request in requests:
            rolling = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            windows = [make_disjoint_window(window) for window in rolling]
            pairs += [(None, *window) for window in windows]
            counts.append(len(windows))
        answers = iter(self._loglikelihood_tokens(pairs))
        return [sum(next(answers)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to one of its stop strings."""
        drawn: Counter[str] = Counter()  # a request that is repeated gets another seed each time
        asked = []
        for request in requests:
            context, options = request.args
            asked.append(self._request(context, options, self.seed + drawn[repr(request.args)]))
            drawn[repr(request.args)] += 1
        order = sorted(range(len(asked)), key=lambda number: -len(asked[number].ids))
        texts = [""] * len(asked)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            continued = continue_texts(self.model, self.words, [asked[number] for number in batch])
            for number, each in zip(batch, continued, strict=True):
                texts[number] = self._plain(each.tokens, each.request.stop)
        return texts

    def _request(self, context: str, options: dict[str, Any], seed: int) -> TextRequest:
        given = dict(normalize_gen_kwargs(options, _NEW_TOKENS))
        stop, new_tokens, draws = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample")
        unknown = [name for name in given if name not in _RULES]
        if unknown:
            raise CallError(
                f"a task asks for generation with {unknown[0]}; known are until, max_gen_toks, do_sample, "
                f"{', '.join(_RULES)}"
            )
        room = self.max_length - new_tokens
        if room < 1:
            raise CallError(
                f"a task asks for {new_tokens} new tokens, and the window has {self.max_length}: lower its max_gen_toks"
            )
        rules = given if draws else {name: value for name, value in given.items() if name.endswith("penalty")}
        ids = torch.tensor(self.tok_encode(context)[-room:], device=self._device)
        sampling = Sampling(**{"temperature": 1.0, **rules} if draws else {**rules, "temperature": 0.0})
        return TextRequest(ids, new_tokens, sampling, seed, tuple(stop))

    def _plain(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of tokens, without special ones, up to the first stop string."""
        text = self.words.decode(token for token in tokens if self.words.byte_lengths[token])
        for each in stop:
            text = text.split(each)[0] if each else text
        return text
