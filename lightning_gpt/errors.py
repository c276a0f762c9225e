"""The ways in which a command can end early, one class for each exit status."""


class CallError(Exception):
    """The call itself is wrong: an option, a value, a file or a shape. Exit status 2.

    The message is one line that names what was given and what is allowed. The class does not derive from
    ``ValueError``, which the config parser takes for a wrong type and wraps in an explanation of its own.
    """


class WorkError(Exception):
    """The call was valid but the work failed: unreadable text, no network, a full disk. Exit status 1."""


class Stopped(BaseException):
    """The work was asked to stop by Ctrl-C, SIGTERM or SIGHUP and lost nothing that was saved. Exit status 130.

    It may be raised anywhere, so it is no ``Exception``: libraries catch those for reasons of their own.
    """
