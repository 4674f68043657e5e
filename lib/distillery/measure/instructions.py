"""Fine-tune a language model on a part of some instructions, chosen by a score of `scores/text.py` and a rule of `selection.py`.

Every result is a stored run: computed once, within the budget, with what it cost.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distillery import selection, store
from distillery.checks import check_positive_int
from distillery.data import instructions
from distillery.data.instructions import Encoded, Instruction
from distillery.encoders import language
from distillery.runs import DependencyMissing, Runs
from distillery.scores import text
from distillery.seeds import generator
from distillery.training.language import finetune

VERSION = 2  # of everything that decides a result; raise it when a change makes stored ones stale
TRIES = 3  # random draws, and values of gamma
SEEN = 0.4  # share that a model without training is trained on first
HELD_OUT = (0.66, 0.8)  # ends of the pool and of what is held out for choices; the rest is for tests
SHARD = 512  # instructions that are scored at once
ENDS = {"easiest": ("lowest", "complexity"), "hardest": ("highest", "complexity")}
ENDS |= {"highest IFD": ("highest", "IFD"), "longest": ("highest", "length")}


@dataclass(frozen=True)
class Pool:
    """A language model and instructions, which every seed splits anew into those to choose from, those held out for choices, and for tests.

    name      what the instructions are called
    start     the model as it was read or drawn; `tokenizer` = its own
    entries   the instructions; `encoded` = the same as tokens
    seen      tokens of others that the model is trained on first
    silent    where those stand in the file that have no response and were left out
    training  steps, lr, batch and rank of every fine-tuning
    runs      where results are kept; `engine` = what scoring is mapped by
    inputs    what identifies them, beside the rule: model, masks, length and training; `digest` = that of all instructions
    bills     'seconds' and 'samples' of what was asked for
    """

    name: str
    start: nn.Module
    tokenizer: object
    entries: list[Instruction]
    encoded: list[Encoded]
    seen: list[Encoded]
    silent: list[str]
    training: dict
    runs: Runs
    engine: str
    inputs: dict
    digest: str
    bills: list[dict] = field(default_factory=list)

    @property
    def cut(self) -> tuple[int, int]:
        """How many prompts, and how many responses, were too long and lost their ends."""
        every = [*self.encoded, *self.seen]
        return sum(one.lost > 0 for one in every), sum(one.cut > 0 for one in every)

    @cached_property
    def model(self) -> nn.Module:
        """The model before a choice is made: all its weights trained on `seen` first, once, if there is something."""
        if not self.seen:
            return self.start
        path = self.runs.artifact("language-model-" + store.identity("language model", VERSION, self.inputs, self.digest))
        if not path.exists():
            how = self.training | {"rank": 0}
            tuned = finetune(self.start, self.seen, range(len(self.seen)), generator=generator(0, "before"), **how)
            store.save_tensors(path, tuned.state_dict(), self.inputs)
        self.start.load_state_dict(store.load_tensors(path)[0])
        return self.start

    @cached_property
    def scores(self) -> text.Scores | None:
        """Of all instructions; None if the budget is spent."""
        shards = [self.entries[i : i + SHARD] for i in range(0, len(self.entries), SHARD)]
        how = {"masks": self.inputs["masks"], "length": self.inputs["length"], "engine": self.engine}
        found = text.score(self.model, self.tokenizer, shards, self.runs, **how)
        if found:
            passes = len(found.path) + 1
            self.bills.append({"seconds": found.seconds, "samples": passes * len(self.entries)})
        return found

    def split(self, seed: int) -> list[list[int]]:
        """Indices to choose from, held out for choices, and for tests."""
        order = torch.randperm(len(self.encoded), generator=generator(seed, "instructions split"))
        return [part.tolist() for part in order.tensor_split([round(end * len(order)) for end in HELD_OUT])]

    def rows(self, seeds: Iterable[int], part: float) -> dict[str, list[dict | None]]:
        """Results by seed of several ways to choose a part of the pool; None = not run.

        'before' is the model before any choice; 'random' has the numbers of all draws. 'best of 3 random' and 'FlexRand by validation' are
        the tries with the least loss on what is held out for choices.
        """
        seeds = list(seeds)
        gammas = sorted(selection.legal_gammas(part, TRIES), key=lambda gamma: abs(gamma - 0.5))
        draws = [self.tuned(seeds, part, "random", draw=i) for i in range(TRIES)]
        flexible = [self.tuned(seeds, part, "flexrand", "complexity", gamma) for gamma in gammas]
        rows = {"before": [self._stored({"rule": "none"}, seed, lambda seed=seed: self._judged(self.model, seed)) for seed in seeds]}
        rows |= {"random": pooled(draws), f"best of {TRIES} random": best(draws)}
        rows |= {"FlexRand at 1/2": flexible[0], "FlexRand by validation": best(flexible)}
        return rows | {name: self.tuned(seeds, part, *how) for name, how in ENDS.items()}

    def tuned(self, seeds: Iterable[int], part: float, rule: str, score: str = "", gamma: float = 0.5, draw: int = 0) -> list[dict | None]:
        """Results by seed of fine-tuning on a part of the pool; None = not run.

        returns  'loss' on tests and 'validation', in nats a token, means over responses; 'answers' = the share of the tests whose response
                 greedy decoding gives word for word; each a list of one number; and costs
        rule     of `selection.py`, in one group, as there are no classes
        score    one of `Scores`, '' for a rule that goes by none
        """

        def compute(seed: int) -> dict:
            if score and self.scores is None:
                raise DependencyMissing
            own = self.split(seed)[0]
            scores = self.scores[score][own] if score else torch.zeros(len(own))
            budget = selection.count(part, len(own))
            kept = selection.select(scores, budget, None, rule, generator(seed, "text", rule, draw), gamma)
            chosen = [own[i] for i in kept.tolist()]
            model = finetune(self.model, self.encoded, chosen, generator=generator(seed, "text order"), **self.training)
            samples = self.training["steps"] * self.training["batch"]
            return self._judged(model, seed) | {"steps": self.training["steps"], "samples": samples}

        how = {"keep": part, "rule": rule, "score": score, "gamma": gamma, "draw": draw}
        return [self._stored(how, seed, lambda seed=seed: compute(seed)) for seed in seeds]

    def _stored(self, how: dict, seed: int, compute) -> dict | None:
        def timed(key: str) -> dict:
            _ = self.model, self.scores if how.get("score") else None  # before the clock starts: they serve many results
            began = time.monotonic()
            return {"steps": 0, "samples": 0} | compute() | {"seconds": time.monotonic() - began}

        found = self.runs.try_get("instructions", VERSION, self.inputs | how | {"row": seed}, self.digest, timed)
        if found:
            self.bills.append({"seconds": found["seconds"], "samples": found["samples"]})
        return found

    def _judged(self, model: nn.Module, seed: int) -> dict:
        _, held_out, test = self.split(seed)
        losses, exact = text.responses(model, [self.encoded[i] for i in test])
        chosen_by = text.responses(model, [self.encoded[i] for i in held_out])[0]
        return {"loss": [float(losses.mean())], "answers": [float(exact.float().mean())], "validation": [float(chosen_by.mean())]}


def pooled(tries: list[list[dict | None]]) -> list[dict | None]:
    """For each seed the numbers of all tries in one result; None where one of them has not run."""
    return [
        {name: sum((one[name] for one in by_seed), []) for name in ("loss", "answers")} if all(by_seed) else None for by_seed in zip(*tries)
    ]


def best(tries: list[list[dict | None]]) -> list[dict | None]:
    """For each seed the try with the least loss on what is held out for choices; None where one of them has not run."""
    return [min(by_seed, key=lambda one: one["validation"]) if all(by_seed) else None for by_seed in zip(*tries)]


def gains(rows: dict[str, list[dict | None]], name: str) -> list[list[float] | None]:
    """gains[seed][try]: nats a token by which fine-tuning on a row's choice lowers the loss on tests of the model before; None = not run."""
    pairs = zip(rows["before"], rows[name])
    return [[was["loss"][0] - loss for loss in one["loss"]] if was and one else None for was, one in pairs]


def mean_gains(by_part: Iterable[dict[str, list[dict | None]]], name: str) -> list[list[float] | None]:
    """gains[seed][0] of a row, mean over its tries and over parts; None where one has not run."""
    found = zip(*(gains(rows, name) for rows in by_part))
    return [[float(np.mean([np.mean(one) for one in by_seed]))] if all(by_seed) else None for by_seed in found]


def prepare(
    runs: Runs, model: str, file: str, n: int, seed: int, *, masks: int, length: int, steps: int, lr: float, batch: int, rank: int,
    engine: str = "local", device: torch.device | str = "cpu",
) -> Pool:  # fmt: skip
    """Read or make up instructions, and read or draw a model.

    model   of `language.load_model`, '' = a small model of characters, which is first trained on some of the instructions
    file    in Alpaca form, '' = made-up instructions
    n       instructions made up, or drawn from the file, 0 = all of the file
    masks   models on the path of the complexity
    length  tokens of prompt and response, or the model's window where that is shorter
    raises  InputError where nothing is to be made up, and as `instructions.load`, `language.load_model` and `instructions.encode`
    """
    if not file:
        check_positive_int("n_instructions", n)
    stream, training = generator(seed, "instructions"), {"steps": steps, "lr": lr, "batch": batch, "rank": rank}
    made = instructions.Read(instructions.make_instructions(n, stream), []) if not file else None
    entries, silent = made or instructions.load(file, n, stream)
    network, tokenizer = language.load_model(model, device) if model else language.tiny_model(entries, generator=stream)
    length = language.window(network, length)
    encoded = instructions.encode(tokenizer, entries, length)
    first = 0 if model else round(SEEN * len(entries))
    digest = hashlib.sha256(store.canonical([list(one) for one in entries]).encode()).hexdigest()
    weights = store.tensor_digest(dict(network.named_parameters()))
    inputs = {"model": weights, "trained": bool(model), "masks": masks, "length": length} | training
    name = Path(file).stem if file else "made-up instructions"
    whole = name, network.to(device), tokenizer, entries[first:], encoded[first:], encoded[:first], silent
    return Pool(*whole, training, runs, engine, inputs, digest)
