"""What `distillery run` says while a notebook runs: a line a finished run, which the kernel tells in a file that is followed here."""

import json
import sys
import threading
from pathlib import Path


class Progress:
    """Follows a file of events as `Runs.tell` writes them; what they come to goes to stderr and to a log.

    total  runs that the whole notebook asks for, 0 = not known
    left   runs that are not stored, None = not known
    """

    def __init__(self, events: Path, log: Path, total: int = 0, left: int | None = None):
        self.events, self.log, self.total, self.left = events, log, total, left
        self.done, self.row, self.spent = 0, 0, []  # runs, those left of a row that were announced, seconds of each computed run
        self._ended = threading.Event()

    def __enter__(self) -> "Progress":
        self.events.touch()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        with open(self.events) as events, open(self.log, "w") as log:
            part, last = "", False
            while not last:
                last = self._ended.wait(0.2)
                *lines, part = (part + events.read()).split("\n")
                for line in filter(None, map(self.line, map(json.loads, lines))):
                    print(line, file=sys.stderr, flush=True)
                    print(line, file=log, flush=True)

    def line(self, event: dict) -> str:
        """What an event comes to in a line, '' for nothing."""
        if "row" in event:
            self.row = event["row"]
            return ""
        if "scores" in event:
            return f"{'':<{len(self._number())}}  scores: {event['scores']}  {duration(event['seconds'])}"
        self.done, self.row = self.done + 1, max(0, self.row - 1)
        numbers, seconds = event["accuracies"], event["seconds"]
        plain = isinstance(numbers, list) and numbers and all(isinstance(one, float) for one in numbers)
        shown = [self._number() + " " + event["run"], *([f"{100 * sum(numbers) / len(numbers):.1f}%"] if plain else [])]
        if seconds is None:
            return "  ".join([*shown, "stored"])
        self.spent.append(seconds)
        return "  ".join([*shown, duration(seconds) + self._left()])

    def _number(self) -> str:
        if self.done > self.total:
            return f"[{self.done:>3}]"
        return f"[{self.done:>{len(str(self.total))}}/{self.total}]"

    def _left(self) -> str:
        """The time left by the mean of what was computed: of the notebook where it is known how many runs are left, else of the row."""
        each, row = sum(self.spent) / len(self.spent), self.left is None and self.done > self.total
        n = self.row if row else self.total - self.done if self.left is None else self.left - len(self.spent)
        return f", {f'{n} more of this row, ' * row}about {duration(n * each)} left" if n > 0 else ""


def duration(seconds: float) -> str:
    """'0.4 s', '41 s', '6 min', '2.5 h'."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
