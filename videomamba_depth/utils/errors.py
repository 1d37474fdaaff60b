"""Errors that a person can cause, and how entry points report them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that a full disk, a quota or a limit of the file size leads to."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, with which value, and what to do."""


@contextmanager
def exit_on_user_error(*also: type[Exception]) -> Iterator[None]:
    """Turn a `UserError`, or a full disk, into `error: …` on stderr and exit status 2; all else comes through.

    What was printed is flushed here, so that a full disk or a reader that has gone is noticed behind stdout too.

    Args:
        also: kinds of exception that are such errors too.
    """
    caught: tuple[type[Exception], ...] = (UserError, *also)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None and not sys.stdout.closed:
                sys.stdout.flush()
    except caught as error:
        _exit_with(str(error))
    except BrokenPipeError:
        _exit_with("whoever read the output has stopped reading")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or "an output, or what was printed"
        _exit_with(f"cannot write {where}: {error.strerror}; free some space and run again")


def _exit_with(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try, and complain, once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(2)
