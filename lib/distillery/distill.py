"""The one loop over distillation steps: any objective, any sampler, one optimizer per learned tensor.

Every random draw of step i comes from generators keyed by i, and a checkpoint holds everything else, so a run that is killed anywhere and
started again ends with the same bits as one that was not.

An objective has

    start(synthetic, generator) -> state: dict[str, Tensor]
    step(synthetic, state, draw: RealBatches, generator) -> (gradients: dict[str, Tensor] by learned tensor, or None to skip the update,
                                                             state, log: dict of scalars)

and may have

    name: str                               of what is said and of checkpoints
    averaged, positive: tuple[str, ...]     tensors of the moving average (all learned ones else); that have to stay above 0
    bounds: dict[str, tuple[Tensor, Tensor]]  (low, high) that broadcast to a learned tensor, which is clamped after each update
    predict(synthetic, state, images, generator) -> (N, classes) logits, for the sampler `Importance`
    statistic, distance                     for the sampler `TreatmentEffect`, see `matching.effects.Separable`
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from distillery import store
from distillery.checks import InputError, RunFailed, check_choice, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator as keyed_generator

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "cosine": lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps)),
    "cosine to a tenth": lambda step, steps: 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)),
    "linear": lambda step, steps: 1 - step / steps,
    "linear to a thousandth": lambda step, steps: 1 - 0.999 * step / steps,
}
CHECK_EVERY = 100  # steps between looks for NaN; each look waits for the device


@dataclass(frozen=True)
class Optimizer:
    """How one learned tensor is updated, under a schedule (steps done, steps in all) -> factor.

    kind  torch's 'sgd' or 'adam', or timm's 'lamb' (trust ratio always on, no clipping, no decay: as in optax) or 'adabelief' (not
          rectified, as the default of torch_optimizer, with which RFAD was published)
    """

    lr: float
    momentum: float = 0.0
    kind: str = "sgd"
    schedule: str = "constant"

    def __post_init__(self):
        check_choice("optimizer", self.kind, ("sgd", "adam", "lamb", "adabelief"))
        check_choice("schedule", self.schedule, SCHEDULES)

    def build(self, tensor: Tensor):
        if self.kind == "sgd":
            return Momentum(tensor, self.lr, self.momentum)
        if self.kind == "adam":
            return torch.optim.Adam([tensor], lr=self.lr)
        from timm.optim import AdaBelief, Lamb  # seconds to import

        if self.kind == "adabelief":
            return AdaBelief([tensor], lr=self.lr, rectify=False)
        return Lamb([tensor], lr=self.lr, weight_decay=0.0, max_grad_norm=None, always_adapt=True)


class Momentum:
    """`torch.optim.SGD` of one tensor, to the bit. Torch's own imports a compiler with the first one made, which takes seconds."""

    def __init__(self, tensor: Tensor, lr: float, momentum: float):
        self.param_groups, self.state = [{"params": [tensor], "lr": lr, "momentum": momentum}], defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradient of the tensor."""
        [group] = self.param_groups
        [tensor] = group["params"]
        way, kept = tensor.grad, self.state[tensor]
        if group["momentum"]:
            before = kept.get("momentum_buffer")
            way = kept["momentum_buffer"] = way.clone() if before is None else before.mul_(group["momentum"]).add_(way)
        tensor.add_(way, alpha=-group["lr"])


@dataclass
class Distilled:
    """last: the set after the final step; best: by validation, None without it; ema: the moving average, None without it.

    log   name -> (steps,) float32, NaN where a step did not report the name; 'validation' where a score was asked for
    cost  seconds, samples (real images touched), steps, skipped updates; over all restarts
    """

    last: Synthetic
    best: Synthetic | None
    ema: Synthetic | None
    log: dict[str, Tensor]
    cost: dict[str, float]
    best_step: int | None = None
    best_score: float | None = None


@dataclass
class _Progress:
    """Everything that changes during distillation, besides the optimizers' own state."""

    tensors: dict[str, Tensor]
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int | None = None
    best_score: float | None = None
    log: list[dict[str, Tensor]] = field(default_factory=list)
    checked: int = 0  # log entries known to be finite
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Parts:
    """Finished chunks of classes of one step, kept in a file every so many seconds, so that a kill within a long step loses little.

    key  what the file is of: that of another step, or one that cannot be read, is as none
    """

    def __init__(self, path: Path, key: str, seconds: float):
        self.path, self.key, self.seconds, self.saved = path, key, seconds, time.monotonic()
        self.tensors: dict[str, Tensor] = {}

    def known(self, n: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Chunk of n -> (its loss, its gradient), as far as it was kept."""
        self.key += f" of {n}"
        if self.path.exists():
            with suppress(InputError, KeyError):
                tensors, card = store.load_tensors(self.path)
                self.tensors = tensors if card["key"] == self.key else {}
        return {int(name): (self.tensors[f"loss {name}"], self.tensors[name]) for name in self.tensors if name.isdigit()}

    def add(self, i: int, loss: Tensor, gradient: Tensor) -> None:
        """Take a chunk, and write all where it is time."""
        self.tensors |= {f"loss {i}": loss, f"{i}": gradient}
        if time.monotonic() - self.saved >= self.seconds:
            store.save_tensors(self.path, self.tensors, {"key": self.key})
            self.saved = time.monotonic()


def distill(
    synthetic: Synthetic, objective, real, sampler: Uniform, optimizers: dict[str, Optimizer], steps: int, generator: Generator, *,
    ema: float | None = None, validate: Callable[[Synthetic, int], float] | None = None, validate_every: int = 0,
    checkpoint: str | Path | None = None, checkpoint_seconds: float = 60.0, identity: str = "", progress: bool = False, where: str = "local",
) -> Distilled:  # fmt: skip
    """Distill `real` into `synthetic`.

    objective      see the head of this module
    real, sampler  the real images and which of them a step meets
    optimizers     one per learned tensor; a gradient without an optimizer is refused
    ema            decay of a moving average of the learned tensors; None = none
    validate       (set, step) -> score on validation data, high = good; called every `validate_every` steps
    checkpoint     file to resume from if it exists, written every `checkpoint_seconds`; that of another `identity` is refused. Beside it lie
                   finished classes of a step that takes longer
    where          the engine that classes of a step are mapped over, if its objective goes by classes
    raises         InputError on unknown tensors or a foreign checkpoint; RunFailed where a loss leaves the finite numbers, or a tensor in
                   `objective.positive` the positive ones
    """
    check_positive_int("steps", steps)
    for name in sorted(set(optimizers) - set(synthetic.tensors)):
        raise InputError(f"optimizers: no tensor {name!r} in the set; accepted: {', '.join(synthetic.tensors)}")
    root = int(torch.randint(2**62, (), generator=generator))
    learned = {name: synthetic.tensors[name].detach().clone().requires_grad_() for name in optimizers}
    built = {name: spec.build(learned[name]) for name, spec in optimizers.items()}
    now, positive, bounds = _Progress(learned), getattr(objective, "positive", ()), getattr(objective, "bounds", {})
    bounds = {name: [bound.to(synthetic.device, non_blocking=True) for bound in pair] for name, pair in bounds.items()}
    card = {"identity": identity, "root": root, "steps": steps, "objective": getattr(objective, "name", ""), "ema": ema}
    card["optimizers"] = {name: asdict(spec) for name, spec in optimizers.items()}
    path = Path(checkpoint) if checkpoint else None
    if path and path.exists():
        _resume(path, card, now, built, sampler, synthetic.device)
    else:
        now.state = objective.start(synthetic, keyed_generator(root, "start"))
        if ema is not None:
            now.ema = {name: learned[name].detach().clone() for name in getattr(objective, "averaged", learned)}
    started, saved = time.monotonic() - now.seconds, time.monotonic()
    bar = tqdm(total=steps, initial=now.step, desc=card["objective"], disable=not progress, leave=False)
    while now.step < steps:
        # copies: an objective may keep them in its state, and the optimizers update in place
        current = synthetic.replace(**{name: value.detach().clone() for name, value in learned.items()})
        now.samples += sampler.refresh(now.step, objective, now.state, current)
        parts = Parts(path.with_suffix(".step"), f"{identity} {root} {now.step}", checkpoint_seconds) if path else None
        draw = RealBatches(real, sampler, keyed_generator(root, "real", now.step), parts, where)
        grads, now.state, entry = objective.step(current, now.state, draw, keyed_generator(root, "objective", now.step))
        now.samples += draw.samples
        if sampler.needs and draw.effective is not None:
            entry = entry | {"effective_batch": draw.effective}
        now.log.append({name: torch.as_tensor(value, dtype=torch.float32).detach() for name, value in entry.items()})
        if grads is None:
            now.skipped += 1
        else:
            _update(now, learned, built, optimizers, grads, steps, ema, bounds)
        now.step += 1
        bar.update()
        if validate and validate_every and (now.step % validate_every == 0 or now.step == steps):
            _validate(now, synthetic, validate)
        now.seconds = time.monotonic() - started
        if now.step % CHECK_EVERY == 0:
            _check_finite(now, path, positive)
        if path and now.step < steps and time.monotonic() - saved >= checkpoint_seconds:
            _check_finite(now, path, positive)
            _save(path, card, now, built, sampler)
            saved = time.monotonic()
            parts.path.unlink(missing_ok=True)
    bar.close()
    _check_finite(now, path, positive)
    last = synthetic.replace(**{name: value.detach() for name, value in learned.items()})
    best, averaged = synthetic.replace(**now.best) if now.best else None, last.replace(**now.ema) if now.ema else None
    cost = {"seconds": now.seconds, "samples": now.samples, "steps": now.step, "skipped": now.skipped}
    return Distilled(last, best, averaged, _stack_log(now.log), cost, now.best_step, now.best_score)


def _update(now, learned, built, optimizers, grads, steps, ema, bounds) -> None:
    for name in sorted(set(grads) - set(built)):
        raise InputError(f"objective: a gradient for {name!r} without an optimizer; accepted: {', '.join(built)}")
    for name, gradient in grads.items():
        built[name].param_groups[0]["lr"] = optimizers[name].lr * SCHEDULES[optimizers[name].schedule](now.step, steps)
        learned[name].grad = gradient
        built[name].step()
        if name in bounds:
            learned[name].data.clamp_(*bounds[name])
    for name, value in now.ema.items():
        value.mul_(ema).add_(learned[name].detach(), alpha=1 - ema)


def average_plain(first: Tensor, after: Sequence[Tensor], decay: float) -> Tensor:
    """The moving average of the learned images as FTD publishes it: it starts as the first images, and nothing corrects for that.

    after  the images after each update, in their order
    """
    average = first
    for images in after:
        average = decay * average + (1 - decay) * images
    return average


def _validate(now: _Progress, synthetic: Synthetic, validate) -> None:
    current = {name: value.detach().clone() for name, value in now.tensors.items()}
    score = float(validate(synthetic.replace(**current), now.step))
    now.log[-1]["validation"] = torch.tensor(score)
    if now.best_score is None or score > now.best_score:
        now.best, now.best_step, now.best_score = current, now.step, score


def _check_finite(now: _Progress, path: Path | None, positive: tuple[str, ...]) -> None:
    """Refuse to go on from NaN, or where tensors and log entries in `positive` leave zero behind: every checkpoint holds a good set."""
    seen = [(step, now.log[step]) for step in range(now.checked, len(now.log))] + [(now.step, now.tensors)]
    now.checked = len(now.log)
    for step, values in seen:
        for name, value in values.items():
            if bool((value.isfinite() & (value > 0 if name in positive else True)).all()):
                continue
            kept = f"; the last good set is in {path}" if path and path.exists() else ""
            left, at = "positive" if name in positive else "finite", f" = {value.item():g}" if value.ndim == 0 else ""
            raise RunFailed(f"distillation left the {left} numbers at step {step}, {name}{at}{kept}; accepted: a smaller rate")


def _save(path: Path, card: dict, now: _Progress, built: dict, sampler: Uniform) -> None:
    groups = {"log": _stack_log(now.log), "tensors": now.tensors, "state": now.state, "ema": now.ema, "best": now.best}
    groups |= {"sampler": sampler.state, "optimizer": {}}
    for name, optimizer in built.items():
        beside = {key: value for key, value in optimizer.param_groups[0].items() if key == "step"}  # LAMB counts its steps there
        state = optimizer.state.get(now.tensors[name], {}) | beside
        groups["optimizer"] |= {f"{name}.{key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
    tensors = {f"{group}.{name}": value for group, members in groups.items() for name, value in members.items()}
    counters = {key: getattr(now, key) for key in ("step", "best_step", "best_score", "samples", "skipped", "seconds")}
    store.save_tensors(path, tensors, card | {"counters": counters})


def _resume(path: Path, card: dict, now: _Progress, built: dict, sampler: Uniform, device) -> None:
    tensors, saved = store.load_tensors(path)
    for key in (key for key, value in card.items() if saved.get(key) != value):
        raise InputError(f"{path} is the checkpoint of another run, its {key} differs; accepted: {card['identity'] or card}")
    groups: dict[str, dict[str, Tensor]] = {key: {} for key in ("tensors", "state", "ema", "best", "sampler", "log", "optimizer")}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        counter = group == "optimizer" and rest.endswith(".step")  # stays on the CPU
        groups[group][rest] = value if counter else value.to(device)
    with torch.no_grad():
        for name, value in groups["tensors"].items():
            now.tensors[name].copy_(value)
    for name, value in groups["optimizer"].items():
        tensor, key = name.rsplit(".", 1)
        if card["optimizers"][tensor]["kind"] == "lamb" and key == "step":
            built[tensor].param_groups[0][key] = value
        else:  # AdaBelief counts in Python
            built[tensor].state[now.tensors[tensor]][key] = value if value.is_floating_point() else int(value)
    now.state, now.ema, now.best = groups["state"], groups["ema"], groups["best"]
    sampler.state.update(groups["sampler"])
    for key, value in saved["counters"].items():
        setattr(now, key, value)
    now.log = [{name: v[i] for name, v in groups["log"].items() if not v[i].isnan()} for i in range(now.step)]


def _stack_log(log: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names, missing = dict.fromkeys(name for entry in log for name in entry), torch.tensor(math.nan)
    return {name: torch.stack([entry.get(name, missing).cpu() for entry in log]) for name in names}
