"""A notebook executed by papermill: in a kernel of this Python, into a temporary file, with a line for every run as it finishes."""

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from distillery import store
from distillery.checks import first_line
from distillery.notebook import parameters
from distillery.notebook.progress import Progress


@contextmanager
def _environment(**values: str):
    """Variables for a while, for the processes that are started in it."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(notebook: Path, content, given: dict, folder: Path, beside: Callable[[], Path], wait: bool, expected: dict) -> int:
    """Execute a notebook with given parameters in a kernel of this Python; the exit code, after a line on stderr where it is not 0.

    content   the notebook, or its path
    folder    where the executed notebook and the log come to lie where it failed; beside() says where else
    wait      for runs that another process is computing
    expected  'total' and 'left' of `Progress`
    """
    # every name was checked before; papermill's own reader trips over a '=' in a comment and calls names unknown
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import papermill
        from ipykernel.kernelspec import write_kernel_spec
        from papermill.exceptions import PapermillException, PapermillExecutionError

    library = str(Path(__file__).resolve().parents[2])  # so that the kernel finds an uninstalled package too
    executed, failure, place = folder / f"{notebook.stem}.executed.ipynb", None, folder
    with tempfile.TemporaryDirectory(prefix="distillery-") as scratch:
        running = Path(scratch) / executed.name  # written cell by cell, so a kill leaves no part of it in the results
        log, events = Path(scratch) / "log.txt", Path(scratch) / "events"
        # of this Python, before any other; its log would tell on stderr of the interrupt with which a kernel is shut down
        write_kernel_spec(Path(scratch) / "kernels" / "python3", extra_arguments=["--log-level=CRITICAL"])
        paths = {"PYTHONPATH": library, "JUPYTER_PATH": scratch}
        paths = {name: os.pathsep.join([first, *filter(None, [os.environ.get(name)])]) for name, first in paths.items()}
        told = {parameters.WAIT: "1" if wait else "", parameters.EVENTS: str(events), "DISTILLERY_RESULTS": str(folder.parents[1])}
        kernel = {"kernel_name": "python3", "language": "python", "cwd": str(notebook.parent)}
        try:
            with _environment(**paths, **told), Progress(events, log, **expected):
                papermill.execute_notebook(content, str(running), given, progress_bar=False, **kernel)
            place = beside()
        except PapermillExecutionError as error:
            failure = error
        except (PapermillException, RuntimeError, OSError, ValueError) as error:  # a kernel that died or never started
            print(f"error: {type(error).__name__}: {first_line(error)}; finished runs are kept in {folder}", file=sys.stderr)
            return 1
        finally:
            for file in (running, log):
                if file.exists():
                    store.write_bytes(place / file.name, file.read_bytes())
                if place != folder:
                    (folder / file.name).unlink(missing_ok=True)  # of a start that failed
    if failure is None:
        return 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(failure.evalue)).splitlines()
    message = next(filter(str.strip, lines), "no message")
    if failure.ename == "InputError":
        print(f"error: {message}", file=sys.stderr)
        return 2
    print(f"error: cell {failure.exec_count}: {failure.ename}: {message}; the whole story is in {executed}", file=sys.stderr)
    return 1
