"""Fine-tune a language model on a part of some instructions (`scores/text.py`), chosen by a rule of `selection.py`.

Every result is a stored run: computed once, within the budget, with what it cost.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from distillery import selection, store
from distillery.runs import DependencyMissing, Runs
from distillery.scores import text
from distillery.seeds import generator

VERSION = 1  # of everything that decides a result; raise it when a change makes stored ones stale
GAMMAS = (0.25, 0.5, 0.75)  # of FlexRand, the ends of the legal range as published and its middle
UNTRAINED = (0.4, 0.7, 0.85)  # ends of what is seen before, of the pool and of what is held out: a model trained here
TRAINED = (0.0, 0.6, 0.8)  # of a model that has seen texts elsewhere


@dataclass(frozen=True)
class Pool:
    """A language model, instructions to choose from, and what is told of the choice.

    start     the model as it was read or drawn
    entries   the instructions of the pool; `encoded` = the same as tokens
    held_out  tokens of those by which a choice may be made; `test` = of those it is judged by
    seen      tokens of those that the model is trained on first
    training  steps, lr and batch of every fine-tuning
    runs      where results are kept
    inputs    what identifies them, beside the rule: model, seed, masks, length and training; `digest` = that of all instructions
    """

    start: nn.Module
    entries: list[text.Instruction]
    encoded: list[text.Encoded]
    held_out: list[text.Encoded]
    test: list[text.Encoded]
    seen: list[text.Encoded]
    training: dict
    runs: Runs
    inputs: dict
    digest: str

    @property
    def budget(self) -> int:
        """How many instructions a choice keeps: half of them, as published."""
        return len(self.encoded) // 2

    @property
    def cut(self) -> int:
        """How many prompts were too long and lost their ends."""
        return sum(one.lost > 0 for part in (self.encoded, self.held_out, self.test, self.seen) for one in part)

    @cached_property
    def model(self) -> nn.Module:
        """The model before a choice is made: trained on `seen` first, once, if there is something."""
        if not self.seen:
            return self.start
        path = self.runs.artifact("language-model-" + store.identity("language model", VERSION, self.inputs, self.digest))
        if not path.exists():
            stream = generator(self.inputs["seed"], "before")
            tuned = text.finetune(self.start, self.seen, range(len(self.seen)), generator=stream, **self.training)
            store.save_tensors(path, tuned.state_dict(), self.inputs)
        self.start.load_state_dict(store.load_tensors(path)[0])
        return self.start

    @cached_property
    def scores(self) -> dict[str, Tensor] | None:
        """'complexity', 'likelihood' and 'length' (tokens of the response) of the pool, (N,), high = hard; None if the budget is spent."""

        def compute() -> dict:
            complexity = text.complexity(self.model, self.encoded, self.inputs["masks"]).tolist()
            found = {"complexity": complexity, "likelihood": text.response_losses(self.model, self.encoded).tolist()}
            return found | {"length": [float(len(one.ids) - one.start) for one in self.encoded]}

        found = self._stored("instruction-scores", {}, compute)
        return found and {name: torch.tensor(found[name]) for name in ("complexity", "likelihood", "length")}

    def rows(self, seeds: Iterable[int]) -> dict[str, list[dict | None]]:
        """Results by seed of several ways to choose half of the pool, of each gamma ('FlexRand, 0.25') and of as many random draws ('draw 1').

        'before' is the model before any choice; the likelihood and the length of a response are controls of the complexity.
        """
        seeds, rows = list(seeds), {"before": [self._stored("instructions", {"rule": "none"}, lambda: self._judged(self.model))]}
        rows |= {f"draw {i + 1}": self.tuned(seeds, "random", draw=i) for i in range(len(GAMMAS))}
        rows |= {f"FlexRand, {gamma}": self.tuned(seeds, "flexrand", "complexity", gamma) for gamma in GAMMAS}
        ends = {"hardest": ("highest", "complexity"), "easiest": ("lowest", "complexity"), "most likely": ("lowest", "likelihood")}
        ends |= {"longest": ("highest", "length")}
        return rows | {name: self.tuned(seeds, *how) for name, how in ends.items()}

    def tuned(self, seeds: Iterable[int], rule: str, score: str = "", gamma: float = 0.5, draw: int = 0) -> list[dict | None]:
        """Results by seed of fine-tuning on half of the pool: 'accuracies' on test and on 'validation' instructions, and costs; None = not run.

        In place of an accuracy stands the likelihood of the tokens of a response, exp(-loss), averaged over responses.

        rule   of `selection.py`, in one group, as there are no classes
        score  one of `scores`, '' for a rule that goes by none
        """
        steps, batch = self.training["steps"], self.training["batch"]

        def compute(seed: int) -> dict:
            scores = torch.zeros(len(self.encoded))
            if score and self.scores is None:
                raise DependencyMissing
            scores = self.scores[score] if score else scores
            kept = selection.select(scores, self.budget, None, rule, generator(seed, "text", rule, draw), gamma)
            model = text.finetune(self.model, self.encoded, kept.tolist(), generator=generator(seed, "text order"), **self.training)
            return self._judged(model) | {"steps": steps, "samples": steps * batch}

        how = {"rule": rule, "score": score, "gamma": gamma, "draw": draw}
        return [self._stored("instructions", how | {"row": seed}, lambda seed=seed: compute(seed)) for seed in seeds]

    def _stored(self, producer: str, how: dict, compute) -> dict | None:
        def timed(key: str) -> dict:
            _ = self.model  # before the clock starts: it serves many results
            began = time.monotonic()
            return compute() | {"seconds": time.monotonic() - began}

        found = self.runs.try_get(producer, VERSION, self.inputs | how, self.digest, timed)
        nothing = {"steps": 0, "samples": 0, "stored_numbers": None, "artifact": None}
        return found and nothing | found | {"seconds_evaluation": found["seconds"]}

    def _judged(self, model: nn.Module) -> dict:
        parts = {"accuracies": self.test, "validation": self.held_out}
        return {name: [float((-text.response_losses(model, one)).exp().mean())] for name, one in parts.items()}


def prepare(runs: Runs, model: str, file: str, n: int, seed: int, *, masks: int, length: int, steps: int, lr: float, batch: int) -> Pool:
    """Read or make up instructions and split them.

    model   a folder or hub name, '' = a small model of characters, which is first trained on some of the instructions
    file    in Alpaca form, '' = n made-up instructions
    masks   models on the path of the complexity
    length  tokens of prompt and response
    raises  InputError as `text.load`, `text.load_model` and `text.encode`
    """
    stream, training = generator(seed, "instructions"), {"steps": steps, "lr": lr, "batch": batch}
    entries = text.load(file) if file else text.make_instructions(n, stream)
    network, tokenizer = text.load_model(model) if model else text.tiny_model(entries, generator=stream)
    encoded = text.encode(tokenizer, entries, length)
    order = torch.randperm(len(encoded), generator=stream).tolist()
    ends = [round(part * len(order)) for part in (TRAINED if model else UNTRAINED)]
    first, own, held_out, test = (order[a:b] for a, b in zip([0, *ends], [*ends, len(order)]))
    digest = hashlib.sha256(store.canonical([list(one) for one in entries]).encode()).hexdigest()
    weights = store.tensor_digest(dict(network.named_parameters()))
    inputs = {"model": weights, "trained": bool(model), "seed": seed, "masks": masks, "length": length} | training
    pool, *parts = ([encoded[i] for i in some] for some in (own, held_out, test, first))
    return Pool(network, [entries[i] for i in own], pool, *parts, training, runs, inputs, digest)
