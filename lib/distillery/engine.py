"""Where work runs: one verb, `map`, over independent shards (runs, experts, classes), results in order.

In this process, or on Ray (the optional extra `ray`, imported only when chosen): on this machine, or on the cluster that $RAY_ADDRESS names,
whose nodes then share the results folder.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable

import torch

from distillery.checks import InputError, check_choice, first_line

ENGINES = ("local", "ray")
STARTS = 3  # Ray gives up its own start after a fixed time, which a loaded machine may miss


class WorkerDied(RuntimeError):
    """The process that computed a shard was killed or ran out of memory, again and again."""


def check(engine: str) -> None:
    """Raise InputError on an unknown engine, and on one that is not installed."""
    check_choice("engine", engine, ENGINES)
    if engine == "ray":
        _ray()


def map(
    function: Callable, shards: Iterable, engine: str = "local", *, cpus: float = 1, gpus: float = 0.0, max_retries: int = 2,
    ended: Callable[[int, object], None] = lambda i, result: None,
) -> list:  # fmt: skip
    """[function(shard) for shard in shards] on the chosen engine.

    On Ray every shard has the caller's number of torch threads, and TensorFloat-32 on a GPU where the caller has it, so that its bits are
    those of the local engine.

    cpus, gpus   what a shard is given on Ray; a fraction of a GPU packs several shards on it
    max_retries  how often a shard is started again on Ray after its worker died; the function must be safe to repeat
    ended        is told here of every shard that has ended well: its index and result
    raises       InputError on an unknown or missing engine, or if no machine has so many CPUs or GPUs; what the function raised, never
                 retried; WorkerDied, which names the shard. The local engine stops at the first failure. On Ray the other shards are
                 finished first, so that what they store is kept, and the failure of the first failed shard is raised; only an interrupt
                 ends the shards under way.
    """
    check(engine)
    shards = list(shards)
    if engine == "local" or not shards:
        results = []
        for i, shard in enumerate(shards):
            results.append(function(shard))
            ended(i, results[i])
        return results
    ray = start()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= cpus and one.get("GPU", 0) >= gpus for one in machines):
        have = ", ".join(f"{one.get('CPU', 0):g} and {one.get('GPU', 0):g}" for one in machines)
        raise InputError(f"engine: 'ray' with {cpus:g} CPUs and {gpus:g} GPUs a shard; accepted: {have}")
    # retried here: Ray itself would repeat a task that runs out of memory for ever
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    shared = ray.put(function)
    how = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    waiting = {task.remote(shared, shard, how): (i, 0) for i, shard in enumerate(shards)}
    results, failures = [None] * len(shards), {}
    try:
        while waiting:
            [done], _ = ray.wait(list(waiting))
            i, deaths = waiting.pop(done)
            try:
                results[i] = ray.get(done)
                ended(i, results[i])
            except ray.exceptions.RayError as error:
                # beside an error of the function: the worker, its machine or its answer is gone
                if isinstance(error, ray.exceptions.RayTaskError) or deaths >= max_retries:
                    failures[i] = error
                else:
                    waiting[task.remote(shared, shards[i], how)] = i, deaths + 1
    finally:
        for left in waiting:
            ray.cancel(left, force=True)
    if not failures:
        return results
    i = min(failures)
    error, where = failures[i], f"shard {i} of {len(shards)}"
    if isinstance(error, ray.exceptions.RayTaskError):
        error.cause.add_note(f"in {where}, one of {len(failures)} that failed")
        raise error.cause from error
    raise WorkerDied(f"{where}: its worker died {max_retries + 1} time(s), killed or out of memory; what was finished is kept") from error


def start(**options):
    """The module `ray`, connected; where nothing is there to be joined, it is started with `options` of `ray.init`, for this process."""
    ray = _ray()
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    options = quiet if address else quiet | {"address": "local", "include_dashboard": False} | options
    if failure := _unreachable(address):
        raise InputError(f"RAY_ADDRESS: {address!r}: {failure}; accepted: a running Ray, or unset")
    for _ in range(1 if address else STARTS):
        try:
            ray.init(**options)
            return ray
        except Exception as error:  # Ray raises bare Exceptions here
            ray.shutdown()
            failure = error
    if address:
        raise InputError(f"RAY_ADDRESS: {address!r}: {first_line(failure)}; accepted: a running Ray, or unset") from failure
    raise RuntimeError(f"Ray did not start in {STARTS} attempts: {first_line(failure)}") from failure


def _unreachable(address: str) -> Exception | None:
    """Why nothing answers at HOST:PORT; Ray itself would try for minutes."""
    if not re.fullmatch(r"[^/]+:\d+", address):
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return error
    return None


def _ray():
    try:
        import ray
        import ray.exceptions  # a folder of that name is no Ray
    except ImportError as error:
        raise InputError("engine: 'ray' is not installed; accepted: local, or first `pip install \"distillery[ray]\"`") from error
    return ray


def _task(function: Callable, shard, how: tuple[int, bool, bool]):
    threads, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = how
    torch.set_num_threads(threads)
    return function(shard)
