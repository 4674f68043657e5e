r"""Scores of instructions by a language model: likelihood, learning complexity, IFD, length; high = hard.

DLC (arXiv 2402.05356) scores an instruction $p$ with response $r$ by the loss of the response, averaged over models with
growing shares of weights at zero; there are no classes and no prototypes. IFD (arXiv 2308.12032) is the ratio of the loss with the
prompt to that without it:

$$\mathrm{DLC}(p, r) = \frac{1}{T}\sum_t \frac{1}{|r|}\sum_j -\log P_{\theta \odot M_t}(r_j \mid p, r_{<j}), \qquad
\mathrm{IFD}(p, r) = \frac{\sum_j \log P_\theta(r_j \mid p, r_{<j})}{\sum_j \log P_\theta(r_j \mid r_{<j})}$$

Needs the extra `text` (transformers).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from distillery import engine as engines
from distillery import store
from distillery.data.instructions import Encoded, Instruction, Lines, encode
from distillery.encoders.language import window
from distillery.runs import Runs
from distillery.scores.complexity import maskable, masked
from distillery.training.language import response_nll

VERSION = 1  # of the losses of a shard; raise it when a change makes stored ones stale


def batches(encoded: Sequence[Encoded], device: torch.device) -> list[list[int]]:
    """Indices in the order of the lengths, in batches of 1,024 tokens with their padding on a CPU, 16,384 elsewhere."""
    most, found = 2**10 if device.type == "cpu" else 2**14, [[]]
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
        if found[-1] and (len(found[-1]) + 1) * len(encoded[i].ids) > most:
            found.append([])
        found[-1].append(i)
    return found


@torch.no_grad()
def responses(model: nn.Module, encoded: Sequence[Encoded], weights: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Of each response given its prompt the mean negative log-likelihood in nats a token, (N,), and whether greedy decoding gives it, (N,) bool.

    model    a causal language model of transformers, in evaluation mode
    weights  tensors by name in place of the model's, from `masked` for example
    Source: DLC. Slow reference: `response_loss_plain`.
    """
    losses, exact = torch.empty(len(encoded)), torch.empty(len(encoded), dtype=torch.bool)
    for here in batches(encoded, next(model.parameters()).device):
        found = response_nll(model, [encoded[i] for i in here], weights)
        losses[here], exact[here] = (one.cpu() for one in found)
    return losses, exact


@torch.no_grad()
def response_loss_plain(model: nn.Module, encoded: Encoded) -> float:
    """The definition: the response token by token, each told from those before it."""
    device = next(model.parameters()).device
    total = 0.0
    for j in range(encoded.start, len(encoded.ids)):
        logits = model(input_ids=encoded.ids[None, :j].to(device)).logits[0, -1].float()
        total -= float(logits.log_softmax(-1)[encoded.ids[j]])
    return total / (len(encoded.ids) - encoded.start)


@dataclass(frozen=True)
class Scores:
    """Of N instructions, in their order: the losses (T, N) on the path, the loss without the prompt (N,), both in nats a token, and the
    length of the response (N,) in tokens. `prompts` and `responses` lost their ends; `silent` had no response and are left out."""

    path: Tensor
    alone: Tensor
    length: Tensor
    prompts: int
    responses: int
    silent: list[str]
    seconds: float

    def __getitem__(self, name: str) -> Tensor:
        """'complexity' (DLC), 'likelihood' (the plain loss, DLC at T = 1), 'IFD' or 'length', (N,)."""
        plain = self.path[0]
        return {"complexity": self.path.mean(0), "likelihood": plain, "IFD": plain / self.alone, "length": self.length}[name]


def score(
    model: nn.Module, tokenizer, shards: Sequence[Lines | list[Instruction]], runs: Runs, *,
    masks: int = 3, interval: float = 0.2, length: int = 1024, engine: str = "local",
) -> Scores | None:  # fmt: skip
    """Scores of all instructions of some shards: every shard under every mask is a stored run, so that what was stopped goes on there.

    Masks are shares 0, `interval`, 2 `interval`, .. of the *original* weights of each linear layer but the head, smallest first. The
    public code prunes what is left again, but its second mask hits weights that are zero already.

    shards   of `instructions.shards`: no more than one is held in memory, beside four numbers of each instruction
    masks    T, models on the path; 1 = no mask
    length   tokens of prompt and response, of `encode`, or the model's window where that is shorter
    engine   maps over shards; bits are those of the local engine
    returns  None where the budget of the runs did not suffice
    raises   InputError where the last share would be 1 or more, and as `Lines.read` and `encode`
    Sources: DLC; Cherry_LLM for the loss without a prompt, which is that behind '### Response:'.
    """
    inputs = {"model": store.tensor_digest(dict(model.named_parameters())), "length": window(model, length)}
    shares = [interval * t for t in range(masks)]
    path = masked({name: model.get_parameter(name) for name in maskable(model)}, shares, scope="layer")
    found = []
    for share, weights in chain(zip(shares, path), [(None, None)]):  # last without the prompt
        losses = partial(_stored, model, weights, tokenizer, runs, inputs | {"share": share})
        found.append(engines.map(losses, shards, engine))
        if not all(found[-1]):
            return None
    told = [torch.tensor([value for one in each for value in one["losses"]]) for each in found]
    first = found[0]
    lengths = torch.tensor([float(value) for one in first for value in one["tokens"]])
    cut = [sum(one[name] for one in first) for name in ("prompts", "responses")]
    silent, seconds = [where for one in first for where in one["silent"]], sum(one["seconds"] for each in found for one in each)
    return Scores(torch.stack(told[:-1]), told[-1], lengths, *cut, silent, seconds)


def _stored(model: nn.Module, weights: dict | None, tokenizer, runs: Runs, inputs: dict, shard: Lines | list[Instruction]) -> dict | None:
    """What one model makes of a shard, stored; None where the budget is spent."""
    alone = inputs["share"] is None

    def compute(key: str) -> dict:
        began = time.monotonic()
        entries, silent = shard.read() if isinstance(shard, Lines) else (shard, [])
        encoded = encode(tokenizer, entries, inputs["length"], alone=alone)
        losses = responses(model, encoded, weights)[0].tolist()
        cut = {"prompts": sum(one.lost > 0 for one in encoded), "responses": sum(one.cut > 0 for one in encoded)}
        tokens = [len(one.ids) - one.start for one in encoded]
        return {"losses": losses, "tokens": tokens, "silent": silent, "seconds": time.monotonic() - began} | cut

    digest = shard.digest() if isinstance(shard, Lines) else store.identity("instructions", 1, {}, store.canonical(shard))
    return runs.try_get("response losses", VERSION, inputs, digest, compute)
