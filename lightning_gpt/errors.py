"""The ways in which a user's request can end early, told apart so that the exit status can tell them apart."""


class CallError(Exception):
    """The call itself is wrong: an option, a value, a file or a shape. Exit status 2.

    The message is one line that names what was given and what is allowed. It is no ``ValueError``, because the
    config parser takes that for a value of the wrong type and buries the message in an explanation of its own.
    """


class WorkError(Exception):
    """The call was right and the work failed: unreadable text, no network, a full disk. Exit status 1."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """The work was asked to stop (Ctrl-C or SIGTERM) and did, with nothing lost. Exit status 130."""
