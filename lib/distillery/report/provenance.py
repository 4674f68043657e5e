"""Where a record was made: commit, versions, machine."""

import hashlib
import os
import platform
import re
import socket
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from distillery import __version__, places, store


def provenance() -> dict:
    """Commit, versions, machine. Host names are hashed, nothing here names a person or a path."""
    return {
        "git": _git(),
        "distillery": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn", "papermill")},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_flags": _cpu_flags(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def notebook_digest(name: str) -> str | None:
    """sha256 (12 hex digits) of the code of a notebook that comes with the package; None where it is not at hand."""
    path = places.NOTEBOOKS / f"{name}.ipynb"
    if not path.is_file():
        return None
    cells = [cell for cell in store.read_json(path)["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(store.canonical([cell["source"] for cell in cells]).encode()).hexdigest()[:12]


def _git() -> dict | None:
    if not places.IN_REPOSITORY:  # one around an installed package is somebody else's
        return None

    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout

    try:
        diff = git("diff", "HEAD", "--", ":/lib", ":/notebooks")
        digest = hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": digest}
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """The processor's name."""
    with suppress(OSError, TypeError):
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    interesting = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return sorted(interesting & set(flags))
