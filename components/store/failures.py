"""What can go wrong with an object, said in one sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import KinoflowError


class StoreError(KinoflowError):
    """The store refused, is away, or is full."""


class ObjectMissing(StoreError):  # noqa: N818  # the state of the store, not a fault of it
    """There is nothing at that URI."""


class Refused(StoreError):  # noqa: N818  # an answer, not a fault of the program
    """The store answers, and will not do this: forbidden, or a name it does not take."""


@contextmanager
def sentences(action: str, uri: str) -> Iterator[None]:
    """Turn what the operating system raises into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"Could not {action} {uri}: there is no such file.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"Could not {action} {uri}: the disk is full; free some space and start again.") from error
        raise StoreError(f"Could not {action} {uri}: {error.strerror or error}.") from error
