"""Locks between processes: a file with its owner's name, touched while it lives, taken over when it is dead. Standard library alone."""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from distillery.checks import InputError

BEAT, SILENCE = 10.0, 120.0  # seconds: the owner of a lock touches it; it is taken for dead


@contextmanager
def lock(path: str | Path, wait: bool = False):
    """Own `path` for a while, so that two workers never produce one id. A lock left by a dead process is taken over.

    The owner touches the file every BEAT seconds. wait: wait for a living owner, and take over when the file has not been touched for
    SILENCE seconds, which also frees the lock of a machine that is gone. Should the owner only have slept, both produce the same file,
    which is written atomically. Raises InputError if `wait` is false and a living process of this host, or any of another host, holds it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path.parent}: {error.strerror}; accepted: a writable folder") from error
    me = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}, separators=(",", ":"))
    seen, since = None, 0.0
    while not _create(path, me):
        try:
            found = path.read_text(errors="replace"), path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # just let go
        if found != seen:  # watched by our own clock: those of other machines may differ
            seen, since = found, time.monotonic()
        owner = _owner(found[0])
        held = owner and (owner["host"] != socket.gethostname() or _alive(owner["pid"]))
        if held and not wait:
            whose = f"process {owner['pid']} on {owner['host']}"
            raise InputError(f"{path.stem} is being produced by {whose}; accepted: wait, or remove {path}")
        # an unreadable one may be in the making
        if time.monotonic() - since >= (SILENCE if held else 0 if owner else 1):
            _remove(path, found[0])
        else:
            time.sleep(0.1)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        _remove(path, me)


def _create(path: Path, content: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with suppress(OSError):  # a full disk leaves an empty lock
        os.write(handle, content.encode())
    os.close(handle)
    return True


def _owner(content: str) -> dict | None:
    try:
        return {name: json.loads(content)[name] for name in ("pid", "host")}
    except (ValueError, KeyError, TypeError):
        return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _remove(path: Path, content: str) -> None:
    """Remove a lock if it still has this content: of several workers one succeeds, and none removes a newer lock."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.read_text(errors="replace") != content:  # another worker was faster: put its lock back
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _alive(pid) -> bool:
    if not pid or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # of another user
    return True
