"""Errors that are the user's to mend: told in one line, without a traceback."""

import re


class UserError(Exception):
    """Something outside the code is wrong: a path, a file's content, a combination of flags.

    The message is one line that says what is wrong, where, and what to do. The scripts print it and exit with
    status 1 (see :func:`one_line`).
    """


class DataError(UserError):
    """An image, an annotation file or a proposal file that cannot be used; the message names the file."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit; the message names the file."""


def one_line(error: BaseException) -> str:
    """The message of ``error`` as one line.

    A data loader's worker process wraps an exception in the text of its whole traceback; the last line of it
    is the original message behind the qualified name of its class, which is dropped here.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not lines[0].startswith("Caught "):
        return " ".join(lines)
    return re.sub(r"^[\w.]*\w+(Error|Exception): ", "", lines[-1])
