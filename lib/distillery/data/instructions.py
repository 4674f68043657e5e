"""Instructions with responses: files in Alpaca form, streamed; Alpaca's prompts; tokens; instructions made up by rule."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from distillery import store
from distillery.checks import InputError, first_line

_INTRO = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
_PAIRED = ", paired with an input that provides further context"
RESPONSE = "### Response:\n"  # what a prompt ends with


class Instruction(NamedTuple):
    """One entry of a file in Alpaca form."""

    instruction: str
    input: str
    output: str


class Encoded(NamedTuple):
    """Token ids (L,) int64 of a prompt and its response, which begins at `start`; `lost` tokens of the prompt were cut, `cut` of the response."""

    ids: Tensor
    start: int
    lost: int = 0
    cut: int = 0


class Read(NamedTuple):
    """Entries of a file, and where those stand that have no response and were left out: 'line 7', 'entry 238'."""

    entries: list[Instruction]
    silent: list[str]


class Lines(NamedTuple):
    """Some lines of a .jsonl file: `size` bytes from byte `at` on; `first` is the number of the first line."""

    path: str
    at: int
    size: int
    first: int

    def read(self) -> Read:
        """Their entries. Raises InputError as `load`."""
        with open(self.path, "rb") as file:
            file.seek(self.at)
            lines = file.read(self.size).split(b"\n")
        return _gathered(pair for i, line in enumerate(lines, self.first) for pair in _line(self.path, i, line))

    def digest(self) -> str:
        """sha256 of their bytes."""
        with open(self.path, "rb") as file:
            file.seek(self.at)
            return hashlib.sha256(file.read(self.size)).hexdigest()


def load(path: str | Path, n: int = 0, generator: Generator | None = None) -> Read:
    """Read a JSON list, or one JSON object a line (.jsonl), with the fields instruction, input (optional) and output.

    Files of self-instruct have a list `instances` of inputs and outputs in place of both; each is an entry. Of lines no more is held in
    memory than what is returned.

    n       entries drawn at random, in one pass (reservoir sampling); 0 = all
    raises  InputError on a file that cannot be read, an entry without instruction or whose output is missing or no text, by its line or
            number; and where no entry has a response. An empty response is left out and named.
    """
    kept, silent, seen = [], [], 0
    for where, one in _entries(Path(path)):
        if one is None:
            silent.append(where)
            continue
        seen += 1
        if not n or seen <= n:
            kept.append(one)
        elif (i := int(torch.randint(seen, (), generator=generator))) < n:
            kept[i] = one
    if not kept:
        told = f"{len(silent)} instructions without a response" if silent else "no instructions"
        raise InputError(f"{path} holds {told}; accepted: at least one with a response")
    return Read(kept, silent)


def shards(path: str | Path, size: int = 512) -> list[Lines | list[Instruction]]:
    """A file in parts of `size` entries: of a .jsonl file where its lines lie, found in one pass; a JSON list is read whole.

    Raises InputError on a file that cannot be read.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        entries = load(path).entries
        return [entries[i : i + size] for i in range(0, len(entries), size)]
    found, begin, first, at = [], 0, 1, 0
    for number, line in enumerate(_lines(path), 1):
        at += len(line)
        if number - first + 1 == size:
            found.append(Lines(str(path), begin, at - begin, first))
            begin, first = at, number + 1
    return found + [Lines(str(path), begin, at - begin, first)] * (at > begin)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes: split at line feeds alone, while a text may hold other separators, such as U+2028."""
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: lines of JSON") from error


def _entries(path: Path) -> Iterator[tuple[str, Instruction | None]]:
    """Where each entry stands, and the entry, None without a response."""
    if path.suffix == ".jsonl":
        for i, line in enumerate(_lines(path), 1):
            yield from _line(str(path), i, line)
        return
    content = store.read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} holds a {type(content).__name__}; accepted: a list of instructions")
    for i, one in enumerate(content, 1):
        yield from _entry(str(path), f"entry {i}", one)


def _gathered(pairs) -> Read:
    pairs = list(pairs)
    return Read([one for _, one in pairs if one], [where for where, one in pairs if one is None])


def _line(path: str, number: int, line: bytes) -> Iterator[tuple[str, Instruction | None]]:
    if not line.strip():
        return
    try:
        content = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{path}, line {number}: {first_line(error)}; accepted: one JSON object a line") from error
    yield from _entry(path, f"line {number}", content)


def _entry(path: str, where: str, one) -> Iterator[tuple[str, Instruction | None]]:
    if not isinstance(one, dict):
        raise InputError(f"{path}, {where}: a {type(one).__name__}; accepted: an object with instruction and output")
    instances = one.get("instances", [one])
    if not isinstance(instances, list) or not all(isinstance(each, dict) for each in instances):
        raise InputError(f"{path}, {where}: 'instances' is no list of objects; accepted: objects with input and output")
    for each in instances:
        more = "" if each.get("input") is None else each["input"]
        found = {"instruction": one.get("instruction"), "input": more, "output": each.get("output")}
        for name, value in found.items():
            if not isinstance(value, str) or (name == "instruction" and not value.strip()):
                fault = "is missing" if value is None else f"is {value!r}"
                accepted = "a text that is not empty" if name == "instruction" else "a text"
                raise InputError(f"{path}, {where}: {name!r} {fault}; accepted: {accepted}")
        yield where, Instruction(**found) if found["output"].strip() else None


def prompt(entry: Instruction) -> str:
    """The prompt of Alpaca, up to where the response begins."""
    middle = f"### Input:\n{entry.input}\n\n" if entry.input else ""
    intro = _INTRO.format(_PAIRED if entry.input else "")
    return f"{intro}### Instruction:\n{entry.instruction}\n\n{middle}{RESPONSE}"


def encode(tokenizer, entries: Sequence[Instruction], max_length: int = 1024, *, alone: bool = False) -> list[Encoded]:
    """Tokens of prompts and responses, which are told apart exactly because they are tokenized apart; then the end token.

    max_length  tokens; longer responses are cut. A prompt that fills them all loses its end, so that a quarter is left to the response:
                the public code scores the whole text and trains on its first max_length tokens, where nothing of the response would be
    alone       the same tokens of each response behind '### Response:' in place of its prompt
    raises      InputError where nothing of a prompt would be left
    """
    found, bare = [], tokenizer(RESPONSE)["input_ids"]
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
        told = response[: max_length - len(kept)]
        behind = bare if alone else kept
        found.append(Encoded(torch.tensor(behind + told), len(behind), len(before) - len(kept), len(response) - len(told)))
    return found


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
