"""Memory that was freed stays with the process.

By default glibc maps every block above 32 MiB anew and gives it back when it is freed, and the feature maps of a step are such blocks: at the
published shapes half of a step is then the system handing out zeroed pages. With higher thresholds a step finds the pages of the step before.
What was used stays in use, so that a process holds more memory between its peaks.
"""

import ctypes
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Raise glibc's thresholds for this process; nothing where there is no glibc, or where $DISTILLERY_MALLOC is 'system'."""
    if sys.platform == "linux" and os.environ.get("DISTILLERY_MALLOC") != "system":
        with suppress(OSError, AttributeError):  # another library of C
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, 2**30)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
