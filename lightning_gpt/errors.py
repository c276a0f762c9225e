"""The ways in which a command can end early, one class for each exit status."""


class CallError(Exception):
    """The call itself is wrong: an option, a value, a file or a shape. Exit status 2.

    The message is one line that names what was given and what is allowed. The class does not derive from
    ``ValueError``, which the config parser takes for a wrong type and wraps in an explanation of its own.
    """


class WorkError(Exception):
    """The call was valid but the work failed: unreadable text, no network, a full disk. Exit status 1."""


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP stopped the work; nothing that was saved is lost. Exit status 130.

    It may be raised anywhere, so it does not derive from ``Exception``, which libraries catch.
    """


def invalid_unicode(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that UTF-8 cannot hold: half a character, which an escape in JSON can name."""
    return f"invalid Unicode ({error.reason} at character {error.start})"


def shortened(text: str, most: int) -> str:
    """``text`` on one line of at most ``most`` characters; of a longer one, the beginning and the end."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - end - 1]}…{text[-end:]}"
