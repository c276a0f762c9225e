"""Reading a text that a command line names."""

from pathlib import Path

from lightning_gpt.errors import CallError


def read_text_file(option: str, file: str) -> str:
    """The content of a file of UTF-8 text, without the byte-order mark that some editors begin a file with.

    Args:
        option: The option that names it, for messages.
        file: The file.

    Raises:
        CallError: It cannot be read, is no regular file (a pipe or a device may never end), or is not UTF-8.
    """
    if Path(file).exists() and not Path(file).is_file():
        raise CallError(f"{option} {file!r} cannot be read: it is not a regular file")
    try:
        return Path(file).read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise CallError(f"{option} {file!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CallError(f"{option} {file!r} is not UTF-8 text (byte {error.start:,})") from None
