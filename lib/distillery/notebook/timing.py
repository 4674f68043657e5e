"""How long a row takes, by some of its steps: what `distillery row` says before it starts and `distillery paper` puts in a table."""

import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

from distillery.experiment import Experiment
from distillery.measure.roofline import timed
from distillery.methods import METHODS
from distillery.recipe import Recipe


class TooLong(Exception):
    """What is timed takes longer than it may."""


def of_a_set(short: Experiment, whole: Experiment, recipe: Recipe, seconds: float) -> tuple[float, float]:
    """Seconds of an update of a recipe's set, 0 where it has none, and of its evaluation.

    short    an experiment like `whole` whose stored results may be thrown away
    seconds  for which updates are timed, and a sixth of them for passes of the evaluation
    """
    method, job = METHODS[recipe.method], whole.job(recipe)
    updates, protocol = method.updates(job.settings, recipe.size), whole.protocol

    def of(k: int) -> Recipe:
        start = {"start": recipe.start or "random"} if method.start else {}
        return replace(recipe, **start, settings={**recipe.settings, **(method.quick | {"steps": k} if updates else {})})

    def passes(k: int) -> float:
        made = short.synthetic(short.set_result(of(2)))
        how, steps_of = method.protocol(job, short.protocol, made)
        return timed(lambda: method.train(job, short.fast, made.source(), how.passes(k), job.stream("evaluation"), steps_of))[1]

    step = rate(lambda k: short.set_result(of(k))["seconds"], updates, seconds) if updates else 0.0
    epochs = protocol.epochs + protocol.extra
    return step, epochs * rate(passes, epochs, seconds / 6)


def rate(run: Callable[[int], float], most: int, seconds: float) -> float:
    """Seconds of a piece of work, by ever more pieces at once, until they take half of some seconds or are all there are."""
    n = min(2, most)
    while (spent := run(n)) < seconds / 2 and n < most:
        n = min(most, max(2 * n, int(n * seconds / spent)))
    return spent / n


@contextmanager
def within(seconds: float):
    """Raise TooLong after so many seconds, also where what is interrupted makes another error of it, as torch's compiler does."""
    over = []

    def stop(*_):
        over.append(True)
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if over:
            raise TooLong from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
