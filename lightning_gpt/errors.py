"""The two ways in which a user's request can fail, told apart so that the exit status can tell them apart."""


class CallError(ValueError):
    """The call itself is wrong: an option, a value, a file or a shape. Exit status 2.

    The message is one line that names what was given and what is allowed.
    """


class WorkError(RuntimeError):
    """The call was right and the work failed: unreadable text, no network, a full disk. Exit status 1."""
