"""Errors of data loaders."""

from torch.utils.data import DataLoader

from util.errors import DataError, one_line


def error_of_first_batch(loader: DataLoader) -> str | None:
    """The line for the DataError that the first batch raises, or None.

    The traceback refers to the error itself and to the loader. Unless it is dropped, the garbage collector ends the
    loader in the middle of a later test, and waits ten seconds for its workers.
    """
    try:
        next(iter(loader))
    except DataError as error:
        error.__traceback__ = None
        return one_line(error)
    return None
