r"""Instruction data for language models: files in Alpaca form, response losses, learning complexity; high = hard.

DLC (arXiv 2402.05356) scores an instruction $p$ with response $r$ by the loss of the response, averaged over models with
growing shares of weights at zero; there are no classes and no prototypes:

$$\mathrm{DLC}(p, r) = \frac{1}{T}\sum_t \frac{1}{|r|}\sum_j -\log P_{\theta \odot M_t}(r_j \mid p, r_{<j})$$

Needs the extra `text` (transformers) for everything but reading files.
"""

import copy
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distillery import store
from distillery.checks import InputError, first_line
from distillery.scores.complexity import maskable, masked

FIELDS = ("instruction", "output")  # that must say something; 'input' may be empty or missing
_INTRO = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
# of the small model: what every prompt has in common is one token each, the rest characters
_PIECES = r"Below[\s\S]*?### Instruction:\n|\n\n### Input:\n|\n\n### Response:\n|[\s\S]"
_PAIRED = ", paired with an input that provides further context"


class Instruction(NamedTuple):
    """One entry of a file in Alpaca form."""

    instruction: str
    input: str
    output: str


class Encoded(NamedTuple):
    """Token ids (L,) int64 of a prompt and its response, which begins at `start`; `lost` tokens of the prompt were cut."""

    ids: Tensor
    start: int
    lost: int = 0


def load(path: str | Path) -> list[Instruction]:
    """Read a JSON list, or one JSON object a line (.jsonl), with the fields instruction, input (optional) and output.

    raises  InputError on a file that cannot be read, and on an entry without instruction or output, by its line or number
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines also splits at U+2028, which a text may hold
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}; accepted: lines of JSON") from error
        found = [_line(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    else:
        content = store.read_json(path)
        if not isinstance(content, list):
            raise InputError(f"{path} holds a {type(content).__name__}; accepted: a list of instructions")
        found = [_entry(f"{path}, entry {i}", one) for i, one in enumerate(content, 1)]
    if not found:
        raise InputError(f"{path} holds no instructions; accepted: at least one")
    return found


def _line(path: Path, number: int, line: str) -> Instruction:
    where = f"{path}, line {number}"
    try:
        return _entry(where, json.loads(line))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: {error}; accepted: one JSON object a line") from error


def _entry(where: str, one) -> Instruction:
    if not isinstance(one, dict):
        raise InputError(f"{where}: a {type(one).__name__}; accepted: an object with {', '.join(FIELDS)}")
    for name in FIELDS:
        if not isinstance(one.get(name), str) or not one[name].strip():
            fault = "is missing" if name not in one else f"is {one[name]!r}"
            raise InputError(f"{where}: {name!r} {fault}; accepted: a text that is not empty")
    more = "" if one.get("input") is None else one["input"]
    if not isinstance(more, str):
        raise InputError(f"{where}: 'input' is {more!r}; accepted: a text, or none")
    return Instruction(one["instruction"], more, one["output"])


def prompt(entry: Instruction) -> str:
    """The prompt of Alpaca, up to where the response begins."""
    middle = f"### Input:\n{entry.input}\n\n" if entry.input else ""
    intro = _INTRO.format(_PAIRED if entry.input else "")
    return f"{intro}### Instruction:\n{entry.instruction}\n\n{middle}### Response:\n"


def encode(tokenizer, entries: Sequence[Instruction], max_length: int = 1024) -> list[Encoded]:
    """Tokens of prompts and responses, which are told apart exactly because they are tokenized apart; then the end token.

    max_length  tokens; longer responses are cut. A prompt that fills them all loses its end, so that a quarter is left to the response:
                the public code scores the whole text and trains on its first max_length tokens, where nothing of the response would be
    raises      InputError where nothing of a prompt would be left
    """
    found = []
    for i, one in enumerate(entries, 1):
        before = tokenizer(prompt(one))["input_ids"]
        response = tokenizer(one.output, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            response = [*response, tokenizer.eos_token_id]
        room = min(len(response), max(1, max_length // 4)) if len(before) >= max_length else 0
        kept = before[: max_length - room]
        if not kept:
            raise InputError(
                f"instruction {i}: nothing is left of a prompt of {len(before)} tokens at max_length {max_length}; accepted: more"
            )
        found.append(Encoded(torch.tensor((kept + response)[:max_length]), len(kept), len(before) - len(kept)))
    return found


def _losses(model: nn.Module, weights: dict[str, Tensor] | None, batch: Sequence[Encoded]) -> Tensor:
    """Mean loss of each response, (B,) in nats."""
    device = next(model.parameters()).device
    ids = pad_sequence([one.ids for one in batch], batch_first=True)  # (B, L), padded at the right
    at = torch.arange(ids.shape[1])
    ends, starts = torch.tensor([(len(one.ids), one.start) for one in batch]).T[..., None]  # (B, 1) each
    ids, attention, response = (one.to(device) for one in (ids, (at < ends).long(), (at >= starts) & (at < ends)))  # (B, L) each
    given = {"input_ids": ids, "attention_mask": attention}
    output = model(**given) if weights is None else torch.func.functional_call(model, weights, kwargs=given)
    logits = output.logits[:, :-1].float()  # (B, L - 1, vocabulary): each tells the next token
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    told = response[:, 1:]
    return (nll * told).sum(1) / told.sum(1)


@torch.no_grad()
def response_losses(model: nn.Module, encoded: Sequence[Encoded], batch: int = 16, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Mean negative log-likelihood of each response given its prompt, in nats a token: (N,) on the CPU.

    model    a causal language model of transformers, in evaluation mode
    weights  tensors by name in place of the model's, from `masked` for example
    Source: DLC. Slow reference: `response_loss_plain`.
    """
    by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    losses = torch.empty(len(encoded))
    for at in range(0, len(by_length), batch):
        here = by_length[at : at + batch]
        losses[here] = _losses(model, weights, [encoded[i] for i in here]).cpu()
    return losses


@torch.no_grad()
def response_loss_plain(model: nn.Module, encoded: Encoded) -> float:
    """The definition: the response token by token, each told from those before it."""
    device = next(model.parameters()).device
    total = 0.0
    for j in range(encoded.start, len(encoded.ids)):
        logits = model(input_ids=encoded.ids[None, :j].to(device)).logits[0, -1].float()
        total -= float(logits.log_softmax(-1)[encoded.ids[j]])
    return total / (len(encoded.ids) - encoded.start)


def complexity(model: nn.Module, encoded: Sequence[Encoded], steps: int = 3, interval: float = 0.2) -> Tensor:
    """Learning complexity (N,): the response loss, averaged over the model and its masked copies; high = hard.

    Shares 0, `interval`, 2 `interval`, .. of the *original* weights of each linear layer but the head, smallest first. The
    public code prunes what is left again, but its second mask hits weights that are zero already.

    steps     models; 1 is the plain loss
    raises    InputError where the last share would be 1 or more
    Source: DLC.
    """
    weights = {name: model.get_parameter(name) for name in maskable(model)}
    path = masked(weights, [interval * t for t in range(steps)], scope="layer")
    return torch.stack([response_losses(model, encoded, weights=one) for one in path]).mean(0)


def finetune(
    model: nn.Module, encoded: Sequence[Encoded], chosen: Sequence[int], steps: int, generator: Generator, *,
    lr: float = 1e-3, batch: int = 16,
) -> nn.Module:  # fmt: skip
    """A copy of the model in float32, all weights trained on the response tokens of chosen entries by AdamW; the rate falls linearly.

    chosen     indices into `encoded`, shuffled by the generator, again whenever all have been seen
    raises     InputError if nothing is chosen
    """
    chosen = torch.as_tensor(list(chosen))
    if not len(chosen):
        raise InputError("chosen: no instruction to train on; accepted: at least one")
    tuned = copy.deepcopy(model).float().train()  # in bfloat16 most small steps would be rounded away
    optimizer = torch.optim.AdamW(tuned.parameters(), lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
    rounds = math.ceil(steps * batch / len(chosen))
    order = torch.cat([chosen[torch.randperm(len(chosen), generator=generator)] for _ in range(rounds)])
    for here in order[: steps * batch].split(batch):
        loss = _losses(tuned, None, [encoded[i] for i in here]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return tuned.eval()


def load_model(name: str):
    """(model, tokenizer) of a local folder or a hub name: weights in safetensors alone, no code of others is run.

    raises  InputError where transformers is not installed, or the model is not there, broken, lacks weights or cannot be fetched
    """
    transformers = _transformers()
    try:
        # where trust_remote_code is not given, transformers asks on the terminal whether to run the code of others
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # files that are broken raise whatever their reader does
        accepted = "a causal model with safetensors, folder or hub name"
        raise InputError(f"language model: {name!r}: {first_line(error)}; accepted: {accepted}") from error
    lacking = sorted(found["missing_keys"])
    if lacking:  # transformers draws them at random and goes on
        raise InputError(f"language model: {name!r}: {len(lacking)} tensors are missing, the first {lacking[0]!r}; accepted: all weights")
    return model.eval(), tokenizer


def tiny_model(entries: Sequence[Instruction], generator: Generator):
    """(model, tokenizer): a small Llama over the characters of some entries, not trained; nothing is fetched.

    Torch's global random state is left as it was.
    """
    transformers = _transformers()
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pieces = sorted({piece for one in entries for piece in re.findall(_PIECES, prompt(one) + one.output)})
    vocabulary = {text: i for i, text in enumerate(["<end>", "<unknown>", *pieces])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>")
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = transformers.LlamaForCausalLM(config)
    return model.eval(), tokenizer


def _transformers():
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm in a notebook without widgets
            import transformers
    except ImportError as error:
        raise InputError('transformers is not installed; accepted: first `pip install "distillery[text]"`') from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASKS = {  # name -> (instruction, response of a word), in about the order of difficulty for a model of characters
    "copy": ("Copy the word.", lambda word: word),
    "upper": ("Write in capitals.", str.upper),
    "first": ("Name the first letter.", lambda word: word[0]),
    "double": ("Write the word twice.", lambda word: word + word),
    "count": ("Count the letters.", lambda word: str(len(word))),
    "reverse": ("Write backwards.", lambda word: word[::-1]),
    "sort": ("Sort the letters.", lambda word: "".join(sorted(word))),
    "sum": ("Add the places of the letters in the alphabet.", lambda word: str(sum(_LETTERS.index(c) + 1 for c in word))),
}


def make_instructions(n: int, generator: Generator) -> list[Instruction]:
    """n entries made up by rule: a task of TASKS, drawn evenly, on a word of three to six random letters."""
    made = []
    for _ in range(n):
        at, length = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((0, len(TASKS)), (3, 7)))
        word = "".join(_LETTERS[i] for i in torch.randint(26, (length,), generator=generator))
        text, respond = list(TASKS.values())[at]
        made.append(Instruction(text, word, respond(word)))
    return made
