"""Locks between processes, of one machine or several on a shared folder: `flock`, which the system itself frees when the owner dies."""

import fcntl
import os
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

from distillery.checks import InputError


class Busy(InputError):
    """Another process owns the lock."""


@contextmanager
def lock(path: str | Path, wait: bool = False):
    """Own the file `path` for a while, so that two workers never produce one id; it is removed after.

    wait    wait for whoever owns it, else raise Busy with the owner's name
    raises  InputError too where the folder cannot be written, or its file system has no locks
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+", errors="replace")
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(file, path):
                break
            file.close()  # the last owner has just removed it
    except BlockingIOError as error:
        with file:
            file.seek(0)
            owner = file.readline(100) or "another process"
        raise Busy(f"{path.stem} is being produced by {owner}; accepted: wait until it is done, or end it") from error
    except OSError as error:
        raise InputError(f"cannot lock {path}: {error.strerror}; accepted: a writable folder on a file system with locks") from error
    with file:
        with suppress(OSError):  # a full disk leaves the owner without a name
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if _same(file, path):
                path.unlink(missing_ok=True)


def held(path: str | Path) -> bool:
    """Whether a process owns the file `path`; nothing is waited for or changed."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none
        return False
    return False


def _same(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
