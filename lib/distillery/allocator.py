"""Memory that was freed stays with the process.

By default glibc maps every block above 32 MiB anew and gives it back when it is freed, and the feature maps of a step are such blocks: at the
published shapes half of a step is then the system handing out zeroed pages. With higher thresholds a step finds the pages of the step before.
What was used stays in use, so that a process holds more memory between its peaks; where work of many shapes left it in pieces that nothing fits,
`give_back` clears up between runs.
"""

import ctypes
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_FREE = 8  # the place of fordblks in struct mallinfo2: bytes that are free and held
MUCH = 2**30  # free bytes above which a process gives them back


def keep_freed_memory() -> None:
    """Raise glibc's thresholds for this process; nothing where there is no glibc, or where $DISTILLERY_MALLOC is 'system'."""
    if sys.platform == "linux" and os.environ.get("DISTILLERY_MALLOC") != "system":
        with suppress(OSError, AttributeError):  # another library of C
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, 2**30)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [("numbers", ctypes.c_size_t * 10)]


def give_back(much: int = MUCH) -> None:
    """Give freed memory back to the system where there are more than `much` bytes of it; nothing where there is no glibc (2.33)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallinfo2.restype = _Mallinfo2
            if libc.mallinfo2().numbers[_FREE] > much:
                libc.malloc_trim(0)
