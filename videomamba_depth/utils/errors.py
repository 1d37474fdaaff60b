"""User errors, and how entry points report them."""

from __future__ import annotations

import errno
import io
import os
import reprlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that a full disk, a quota or a limit of the file size leads to."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, with which value, and what to do."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what led to it, is a full disk: nothing that the next input would mend."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in DISK_FULL):
        cause = cause.__cause__
    return cause is not None


def describe(value: object) -> str:
    """Return in one line what a caller gave: type, dtype and shape of a tensor or an array, else how it begins."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    return " ".join(reprlib.repr(value)[:80].split())


@contextmanager
def exit_on_user_error(*also: type[Exception]) -> Iterator[None]:
    """Turn what a person can mend into one line `error: …` on stderr and exit status 2; all else comes through.

    That is a `UserError`, whatever the operating system refuses (a file, a permission, a full disk) and memory that
    does not suffice. With VIDEOMAMBA_TRACEBACK=1 the traceback is shown before.

    What was printed is flushed here, so that a full disk or a reader that has gone is noticed after stdout too.

    Args:
        also: kinds of exception that are such errors too.
    """
    caught: tuple[type[Exception], ...] = (UserError, *also)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be text
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
        if error.errno in DISK_FULL:
            where = error.filename or "an output, or what was printed"
            _exit_with(f"cannot write {where}: {error.strerror}; free some space and run again")
        _exit_with(_described(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _exit_with(f"memory does not suffice ({_first_line(error)}); take smaller frames, clips or batches")


@contextmanager
def building(keys: str) -> Iterator[None]:
    """Name the keys of the config that led there in whatever is raised within and does not name one of them.

    Raises:
        UserError: in place of every `Exception`; VIDEOMAMBA_TRACEBACK=1 shows where it came from.
    """
    try:
        yield
    except UserError as error:
        if any(key in str(error) for key in keys.split(", ")):
            raise
        raise UserError(f"{keys}: {error}") from error
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in DISK_FULL):
            raise
        raise UserError(f"{keys}: {_described(error)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, of the CPU or of a GPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return f"{kind}{_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _exit_with(message: str) -> NoReturn:
    if os.environ.get("VIDEOMAMBA_TRACEBACK", "").strip().lower() not in ("", "0", "false", "off", "no"):
        traceback.print_exc()
    tqdm.write(f"error: {' '.join(message.split())}", file=sys.stderr)  # on a line of its own, not after a bar
    try:
        sys.stdout.flush()
    except OSError:  # Python would try, and complain, once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(2)
