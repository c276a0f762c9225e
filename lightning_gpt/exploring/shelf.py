"""The models that can be explored, each read when it is first looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel


@dataclass(frozen=True)
class Explored:
    """A model with the tokenizer that reads its texts.

    Args:
        name: What the page calls it.
        code: The Python expression that gives it; ``load(…)`` or a model with random weights.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        is_fresh: Whether it is the one-head model with random weights rather than a loaded one.
    """

    name: str
    code: str
    model: LanguageModel
    tokenizer: Tokenizer
    is_fresh: bool = False


class Shelf:
    """The models by number: the first is shown, and others may be compared with it.

    Args:
        names: What the page calls them.
        read: Reads the model with a number.
    """

    def __init__(self, names: Sequence[str], read: Callable[[int], Explored]) -> None:
        self.names = list(names)
        self._read = read
        self._known: dict[int, Explored] = {}

    def get(self, number: int) -> Explored:
        """The model ``number``.

        Raises:
            CallError: There is none of that number, it cannot be read, or it has layers without softmax attention.
        """
        if not 0 <= number < len(self.names):
            raise CallError(f"model is {number}; there are {len(self.names)} (allowed: 0 to {len(self.names) - 1})")
        if number not in self._known:
            found = self._read(number)
            without = [str(view.layer) for view in found.model.block_views() if not view.mixer.has_pattern]
            if without:
                raise CallError(
                    f"{found.name} has layers without softmax attention, which have no pattern to show: "
                    f"{', '.join(without)}"
                )
            self._known[number] = found
        return self._known[number]
