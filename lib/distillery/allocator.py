"""Memory that was freed stays with the process.

By default glibc maps every block above 32 MiB anew and gives it back when it is freed, and the feature maps of a step are such blocks: at the
published shapes half of a step is then the system handing out zeroed pages. With higher thresholds a step finds the pages of the step before.
No bit of a result changes; the peak of memory is the same, and what was used stays in use.
"""

import ctypes
import os
import sys
from contextlib import suppress

KEPT = 2**30, 2**31 - 1  # thresholds in bytes: of a block that is mapped anew, of free memory that is given back
USUAL = 2**25, 2**26  # where glibc's own end up in a process with large blocks
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def thresholds(mapped: int, given_back: int) -> None:
    """Set glibc's thresholds for this process; nothing where there is no glibc."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another library of C
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, mapped)
            libc.mallopt(_TRIM_THRESHOLD, given_back)


def keep_freed_memory() -> None:
    """Raise the thresholds, unless $DISTILLERY_MALLOC is 'system'."""
    if os.environ.get("DISTILLERY_MALLOC") != "system":
        thresholds(*KEPT)
