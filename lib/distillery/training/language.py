"""Loss of the responses of a causal language model, and fine-tuning on them: by LoRA, or of all weights.

LoRA (arXiv 2106.09685) leaves the weights $W$ of a layer as they are and learns a product of rank $r$ beside them,
$h = W x + \\frac{\\alpha}{r} B A x$; $B$ begins at zero.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distillery.checks import InputError, require
from distillery.data.instructions import Encoded

WARM_UP = 100  # steps at most, as published; a tenth of fewer than 1000


def response_nll(model: nn.Module, batch: Sequence[Encoded], weights: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(mean loss in nats a token, whether each token is the model's first choice) of responses: (B,) float32, (B,) bool.

    The second is whether greedy decoding gives the response word for word: its tokens are then those before it.

    model    a causal language model of transformers; logits are taken from the first response on alone, and softmax of responses alone
    weights  tensors by name in place of the model's
    """
    device = next(model.parameters()).device
    ids = pad_sequence([one.ids for one in batch], batch_first=True)  # (B, L), padded at the right
    at = torch.arange(ids.shape[1])
    ends, starts = torch.tensor([(len(one.ids), one.start) for one in batch]).T[..., None]  # (B, 1) each
    ids, attention, response = (one.to(device) for one in (ids, (at < ends).long(), (at >= starts) & (at < ends)))  # (B, L) each
    first = int(starts.min())
    n = ids.shape[1] - first  # places from the first response on, each told by the place before it
    given = {"input_ids": ids, "attention_mask": attention, "logits_to_keep": n + 1, "use_cache": False}
    output = model(**given) if weights is None else torch.func.functional_call(model, weights, kwargs=given)
    told, wanted = response[:, first:], ids[:, first:]  # (B, n) each
    logits = output.logits[:, -n - 1 : -1][told].float()  # (tokens of responses, vocabulary)
    row = told.nonzero()[:, 0]
    sums = logits.new_zeros(2, len(ids))
    sums = sums.index_add(1, row, torch.stack([F.cross_entropy(logits, wanted[told], reduction="none"), logits.argmax(1) != wanted[told]]))
    return sums[0] / told.sum(1), sums[1] == 0


def finetune(
    model: nn.Module, encoded: Sequence[Encoded], chosen: Sequence[int], steps: int, generator: Generator, *,
    lr: float = 5e-4, batch: int = 4, rank: int = 16,
) -> nn.Module:  # fmt: skip
    """A copy of the model, trained on the response tokens of chosen entries by AdamW (weight decay 5e-4) with a warm-up and a cosine to 0.

    Torch's global random state, from which first weights of LoRA and its dropout are drawn, is left as it was.

    chosen     indices into `encoded`, shuffled by the generator, again whenever all have been seen
    rank       of LoRA, with alpha twice the rank, dropout .05 and the layers that peft takes for the architecture (queries and values of a
               Llama), its weights in float32; 0 = all weights are trained, in float32: in bfloat16 most small steps would be rounded away
    raises     InputError if nothing is chosen, peft is not installed, or it does not know the architecture
    Source of the settings: the public code of DLC, which loads the model in 8 bits and warms up for 100 steps.
    """
    chosen = torch.as_tensor(list(chosen))
    if not len(chosen):
        raise InputError("chosen: no instruction to train on; accepted: at least one")
    rounds = math.ceil(steps * batch / len(chosen))
    order = torch.cat([chosen[torch.randperm(len(chosen), generator=generator)] for _ in range(rounds)])
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        tuned = (with_lora(copy.deepcopy(model), rank) if rank else copy.deepcopy(model).float()).train()
        trained = [one for one in tuned.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=5e-4)
        warm = min(WARM_UP, steps // 10)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: (t + 1) / (warm + 1) if t < warm else (1 + math.cos(math.pi * (t - warm) / (steps - warm))) / 2
        )
        for here in order[: steps * batch].split(batch):
            loss = response_nll(tuned, [encoded[i] for i in here])[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return tuned.eval()


def with_lora(model: nn.Module, rank: int) -> nn.Module:
    """The model itself with LoRA in its layers; nothing else is trained. Raises InputError as `finetune`."""
    require("text", "peft")
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05)
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:  # it asks for the names of layers
        raise InputError(f"LoRA: peft does not know layers of {type(model).__name__}; accepted: rank 0, all weights") from error
    for one in model.parameters():
        if one.requires_grad:
            one.data = one.data.float()
    return model
