"""Fine-tune a language model on a part of some instructions (`scores/text.py`), chosen by a rule of `selection.py`."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from distillery import selection
from distillery.report.records import best_of
from distillery.scores import text
from distillery.seeds import generator

GAMMAS = (0.25, 0.5, 0.75)  # of FlexRand, the ends of the legal range as published and its middle
UNTRAINED = (0.4, 0.7, 0.85)  # ends of what is seen before, of the pool and of what is held out: a model trained here
TRAINED = (0.0, 0.6, 0.8)  # of a model that has seen texts elsewhere


@dataclass(frozen=True)
class Pool:
    """A language model, instructions to choose from, and what is told of the choice.

    model     before it is fine-tuned
    entries   the instructions of the pool; `encoded` = the same as tokens
    held_out  tokens of those by which a choice may be made; `test` = of those it is judged by
    before    how many instructions the model was trained on first
    scores    'complexity' and 'likelihood' (N,) of the pool, high = hard
    training  steps, lr and batch of every fine-tuning
    """

    model: nn.Module
    entries: list[text.Instruction]
    encoded: list[text.Encoded]
    held_out: list[text.Encoded]
    test: list[text.Encoded]
    before: int
    scores: dict[str, torch.Tensor]
    training: dict

    @property
    def budget(self) -> int:
        """How many instructions a choice keeps: half of them, as published."""
        return len(self.encoded) // 2

    def rows(self, seeds: Iterable[int]) -> dict[str, list[dict]]:
        """Results by seed of several ways to choose half of the pool; FlexRand and random selection have three tries each.

        The best of them is chosen on the instructions that are held out.
        """
        seeds = list(seeds)
        tried = [self.tuned(seeds, "flexrand", "complexity", gamma) for gamma in GAMMAS]
        drawn = [self.tuned(seeds, "random", draw=i) for i in range(len(GAMMAS))]
        return {
            "before": [self._judged(self.model, 0, time.monotonic())] * len(seeds),
            "random": drawn[0],
            "best of random": best_of(drawn),
            "FlexRand, 1/2": tried[GAMMAS.index(0.5)],
            "FlexRand": best_of(tried),
            "hardest": self.tuned(seeds, "highest", "complexity"),
            "easiest": self.tuned(seeds, "lowest", "complexity"),
            "likelihood, easiest": self.tuned(seeds, "lowest", "likelihood"),
        }

    def tuned(self, seeds: Iterable[int], rule: str, score: str = "", gamma: float = 0.5, draw: int = 0) -> list[dict]:
        """Results by seed of fine-tuning on half of the pool: 'accuracies' on test and on 'validation' instructions, and costs.

        In place of an accuracy stands the likelihood of the tokens of a response, exp(-loss), averaged over responses.

        rule   of `selection.py`, in one group, as there are no classes
        score  one of `scores`, '' for a rule that goes by none
        """
        scores, results = self.scores[score] if score else torch.zeros(len(self.encoded)), []
        for seed in seeds:
            began, order = time.monotonic(), generator(seed, "text order")
            kept = selection.select(scores, self.budget, None, rule, generator(seed, "text", rule, draw), gamma)
            model = text.finetune(self.model, self.encoded, kept.tolist(), generator=order, **self.training)
            results.append(self._judged(model, self.training["steps"], began))
        return results

    def _judged(self, model: nn.Module, steps: int, began: float) -> dict:
        def likelihood(encoded: list[text.Encoded]) -> list[float]:
            return [float((-text.response_losses(model, encoded)).exp().mean())]

        found = {"accuracies": likelihood(self.test), "validation": likelihood(self.held_out), "steps": steps}
        found |= {"samples": steps * self.training["batch"], "stored_numbers": None, "artifact": None}
        seconds = time.monotonic() - began
        return found | {"seconds": seconds, "seconds_evaluation": seconds}


def prepare(model: str, file: str, n: int, seed: int, *, masks: int, length: int, steps: int, lr: float, batch: int) -> Pool:
    """Read or make up instructions, split and score them; a model of our own is first trained on some of them.

    model   a folder or hub name, '' = a small model of characters
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
    if first:
        stream = generator(seed, "before")
        network = text.finetune(network, encoded, first, generator=stream, **training)
    pool = [encoded[i] for i in own]
    scores = {"complexity": text.complexity(network, pool, masks), "likelihood": text.response_losses(network, pool)}
    parts = ([encoded[i] for i in some] for some in (held_out, test))
    return Pool(network, [entries[i] for i in own], pool, *parts, len(first), scores, training)
