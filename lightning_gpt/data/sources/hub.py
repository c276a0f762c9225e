"""Documents from the Hugging Face Hub, or from files on any web server, streamed through ``datasets``."""

import random
import socket
import time
from collections.abc import Iterator
from typing import Any

from lightning_gpt.console import say
from lightning_gpt.data.sources.base import Document, Source, first_line, text_field
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.options import check_options, shown

TRIES = 8
"""Consecutive network failures after which the run stops; with the pauses, after about a minute and a half."""

FIRST_PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""

LONGEST_PAUSE = 30.0
"""Maximum seconds between two attempts."""

TIMEOUT = 10.0
"""Seconds to wait for the answer to the initial request, which only checks that the data set exists."""

RECORDS_AT_ONCE = 256
"""Records per batch of a stream; after a failure at most this many are read again."""

_JITTER = random.Random()  # a separate generator, because drawing from the seeded global one would change the run


class Hub(Source):
    """A text data set of the Hugging Face Hub, streamed through ``datasets``. Needs the network while training.

    A dropped connection is reopened, and reading resumes after the last record.

    Args:
        path: The data set's name, such as ``wikimedia/wikipedia``; or a format (``json``, ``parquet``, ``csv``) if
            ``data_files`` are URLs on another server.
        subset: Its configuration, such as ``20231101.en``.
        split: Which of its splits to read.
        column: The field that holds the text.
        revision: The commit or tag to read; set it to make a run repeatable.
        data_files: URLs to read in this order, such as ``https://example.org/part-1.jsonl.gz``; or the files of the
            data set to read.
    """

    countable = False

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "text",
        revision: str | None = None,
        data_files: str | list[str] | None = None,
        **common: Any,
    ) -> None:
        check_options(Hub.__init__, locals(), f"source {shown(path)}: ")
        self.default_name = path
        super().__init__(**common)
        self.path, self.subset, self.split, self.column, self.revision = path, subset, split, column, revision
        self.data_files = [data_files] if isinstance(data_files, str) else data_files
        self._commit: str | None = None
        self._was_reached = False

    def arguments(self) -> dict[str, Any]:
        own = ("path", "subset", "split", "column", "revision", "data_files")
        return {**super().arguments(), **{name: getattr(self, name) for name in own}}

    def documents(self, start: int = 0) -> Iterator[Document]:
        number, failures, state = start, 0, None
        while True:
            try:
                stream = self._open().skip(start)
                if state is not None:
                    stream.load_state_dict(state)
                # not `for record in stream`: in a loader worker that would yield only the worker's share of the files,
                # but every worker needs every document
                for batch in stream.iter(RECORDS_AT_ONCE):
                    for values in zip(*batch.values(), strict=True):
                        origin = f"{self.path}, record {number}"
                        text = text_field(dict(zip(batch, values, strict=True)), self.column, origin)
                        yield Document(text, origin)
                        number += 1
                    failures, state = 0, stream.state_dict()
                return
            except _network_errors() as error:
                damage = _cause_in_the_file(error)
                if damage is not None:
                    raise self._damaged(number, damage) from None
                failures += 1
                if failures == TRIES:
                    problem = f"could not be read past record {number} in {TRIES} attempts"
                    raise WorkError(f"{self._what()} {problem}: {first_line(error)}") from None
                self._pause(failures, error)
            except (ValueError, TypeError, EOFError) as error:  # raised by `datasets` for files it cannot decode
                raise self._damaged(number, error) from error

    def _open(self) -> Any:
        """The stream from its first record.

        Raises:
            CallError: There is no such data set, subset, split or file.
            WorkError: There is no network.
        """
        import datasets
        from datasets.exceptions import DatasetsError
        from pyarrow import ArrowException

        self._ask()
        try:
            return datasets.load_dataset(
                self.path,
                self.subset,
                split=self.split,
                revision=self._commit or self.revision,
                data_files=self.data_files,
                streaming=True,
            )
        except (ArrowException, UnicodeError):  # a damaged file, not a wrong argument
            raise
        except (ValueError, RuntimeError, DatasetsError) as error:
            raise CallError(f"{self._what()} cannot be opened: {first_line(error)}") from None

    def _ask(self) -> None:
        """Ask the server whether it has the data set.

        Without a network `datasets` would retry for minutes before reporting it, and it reports a missing file and an
        unreachable server with the same error.
        """
        from huggingface_hub.errors import HFValidationError

        try:
            self._request()
        except HFValidationError as error:
            raise CallError(f"{self._what()} cannot be opened: {first_line(error)}") from None
        except _network_errors() as error:
            status = _status(error)
            if status is not None and 400 <= status < 500 and status not in _PASSING:
                raise CallError(
                    f"{self._what()} does not exist or is not accessible (the server answered {status})"
                ) from None
            if not self._was_reached and _is_without_network(error):
                raise WorkError(
                    f"the Hub cannot be reached for data set {self.path!r} ({first_line(error)}); without a network "
                    f"use the embedded corpus (--config configs/data/embedded.yaml) or your own files (class_path: "
                    f"Files)"
                ) from None
            raise
        self._was_reached = True

    def _request(self) -> None:
        from huggingface_hub import HfApi, get_session, hf_raise_for_status

        urls = [file for file in self.data_files or [] if file.startswith(("http://", "https://"))]
        for url in urls:
            with get_session().stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response:
                if response.status_code != 401:  # possibly a file of the Hub, for which `datasets` sends the token
                    hf_raise_for_status(response)
        if not urls:
            # pin the commit: skipping by record number is only valid within one version of the data set
            self._commit = HfApi().dataset_info(self.path, revision=self._commit or self.revision, timeout=TIMEOUT).sha

    def _pause(self, failures: int, error: BaseException) -> None:
        # jitter, so that many processes do not all return to a recovering server at the same moment
        seconds = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) * _JITTER.uniform(0.75, 1.25)
        say(f"{self._what()}: {first_line(error)}; attempt {failures + 1} of {TRIES} in {seconds:.0f} s")
        time.sleep(seconds)

    def _damaged(self, number: int, error: BaseException) -> WorkError:
        return WorkError(f"{self._what()} cannot be read past record {number}: {first_line(error)}")

    def _what(self) -> str:
        return f"data set {self.path!r}" + (f" (revision {self.revision!r})" if self.revision else "")


_PASSING = (408, 429)
"""Status codes that mean "try again later", in addition to those from 500 on."""


def _network_errors() -> tuple[type[Exception], ...]:
    """The exceptions of `datasets`, the Hub's client and fsspec when the network fails, found by experiment.

    OSError covers ConnectionError from `datasets` after its own retries (which take minutes), HfHubHTTPError for a
    status code, FileNotFoundError from fsspec and `datasets` when a file's server does not answer, and TimeoutError.
    The others come from the two HTTP clients where they are called without retries.
    """
    import aiohttp
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # exported at run time only

    return (OSError, httpx.RequestError, aiohttp.ClientError)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and the errors that led to it."""
    errors = [error]
    for each in errors:  # the loop also visits the errors that it appends
        errors += [led for led in (each.__cause__, each.__context__) if led is not None and led not in errors]
    return errors


def _status(error: BaseException) -> int | None:
    """The HTTP status code of an error, if it has one."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _is_without_network(error: BaseException) -> bool:
    """Whether name resolution failed, or the Hub's client is in offline mode."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(each, (socket.gaierror, OfflineModeIsEnabled)) for each in _chain(error))


def _cause_in_the_file(error: BaseException) -> BaseException | None:
    """The underlying error if a file is invalid JSON or Parquet, or of a format that cannot be streamed.

    `datasets` hides it: its second attempt fails with a TypeError because fsspec cannot make it over HTTP, and fsspec
    reports that as a missing file.
    """
    from pyarrow import ArrowException

    chain = _chain(error)
    return next((each for kind in (ArrowException, TypeError) for each in chain if isinstance(each, kind)), None)
