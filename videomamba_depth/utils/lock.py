"""One writer at a time for a run, a cache or an output."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videomamba_depth.utils.atomic import disk_errors
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` inside the block; it is made, with its folder, and removed at the end.

    The kernel frees the lock (`flock`) when its process ends, however it ends: a file that a killed process has left
    is taken over. Over NFS, Linux carries the lock to the server, so that other hosts see it; on a file system without
    locks there is only a warning.

    Args:
        what: what is locked, for the message, e.g. "run 'runs/mine'".

    Raises:
        UserError: another process holds it; the line names its pid and host.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, what)
    owner, held = os.getpid(), True

    def let_go() -> None:
        """Close the lock in a forked loader worker, which must not keep it when its parent is killed."""
        nonlocal held
        if held:
            held = False  # in this process and those that it forks: the number may soon be another file's
            os.close(handle)

    os.register_at_fork(after_in_child=let_go)
    try:
        yield
    finally:
        held = False
        if os.getpid() == owner:
            path.unlink(missing_ok=True)  # while it is held: who has just opened this very file sees that it is gone
            os.close(handle)


def _acquire(path: Path, what: str) -> int:
    """Return the open, locked file at `path`."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                log.warning("this file system has no locks: see that nothing else writes to %s", what)
                return handle
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise UserError(f"{what} is in use by {holder}; wait for it, stop it, or choose another name") from error
        if _is_at(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            return handle
        os.close(handle)  # the holder before removed it between our opening and locking


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        about = json.loads(os.pread(handle, 1000, 0))
        return f"process {about['pid']} on host {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
