"""Locks: who is at work on a file, told by a lock that dies with its process."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # what a file system says that has none


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _locked(handle: int, kind: int) -> bool:
    """Try to lock an open file; a file system without locks lets everybody in: work may repeat, but is written once."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _take(lock: Path) -> int | None:
    """A handle on the lock file, locked; None if another holds it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not _locked(handle, fcntl.LOCK_EX):
                os.close(handle)
                return None
            if os.path.exists(lock) and os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last owner removed it before we had it: ours would guard nothing


@contextlib.contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock `path`.lock while the block runs; yields False if another thread or process has it.

    The operating system gives it back when its process ends, however it ends: no lock is stale.

    Raises:
      OSError: the lock file cannot be made, or is a link: what it leads to is somebody else's.
    """
    lock = _lock_of(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = _take(lock)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)
            os.close(handle)


def held(path: Path) -> bool:
    """Whether somebody alive holds the lock of `path`."""
    try:
        handle = os.open(_lock_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _locked(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
