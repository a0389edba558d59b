"""Errors that the user can correct: one line, without a traceback."""

import re


class UserError(Exception):
    """Something outside the code is wrong: a path, the content of a file, a combination of flags.

    The message is one line that says what is wrong, where, and what to do. The scripts print it and exit with status 1.
    """


class DataError(UserError):
    """An image, annotation file or proposal file is not usable; the message names the file."""


class CheckpointError(UserError):
    """A checkpoint is not readable or does not fit; the message names the file."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` as one line.

    A worker process of the data loader sends an exception as text, with the whole traceback. The last line is the class
    of the exception, which is dropped here, and the original message.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not lines[0].startswith("Caught "):
        return " ".join(lines)
    return re.sub(r"^[\w.]*\w+(Error|Exception): ", "", lines[-1])
