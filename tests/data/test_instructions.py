"""Files of instructions: what is read, streamed, left out and refused; prompts and tokens."""

import json

import pytest

from distillery.data import instructions
from distillery.data.instructions import Instruction, encode, load, make_instructions, prompt, shards
from distillery.encoders.language import tiny_model
from distillery.seeds import generator

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_files_are_read_back(tmp_path):
    entries = [Instruction("Add.", "1 2", "3"), Instruction("Greet.", "", "Hello\nyou")]
    (tmp_path / "a.json").write_text(json.dumps([one._asdict() for one in entries]))
    assert load(tmp_path / "a.json") == (entries, [])
    lines = [json.dumps(GOOD), "", json.dumps({"instruction": "Greet.", "input": None, "output": "Hello\nyou"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert load(tmp_path / "a.jsonl") == (entries, [])


def test_instances_of_self_instruct_are_entries(tmp_path):
    more = {"id": "seed_task_0", "instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": ""}]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [GOOD, more])))
    assert load(tmp_path / "a.jsonl") == ([Instruction(**GOOD)] * 2, ["line 2"])


def test_what_has_no_response_is_left_out_and_named(tmp_path, refused):
    entries = [GOOD, GOOD | {"output": " \n"}, GOOD, GOOD | {"output": ""}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert load(tmp_path / "a.json") == ([Instruction(**GOOD)] * 2, ["entry 2", "entry 4"])
    (tmp_path / "a.jsonl").write_text(json.dumps(entries[1]))
    with refused("a.jsonl", "1 instructions without a response"):
        load(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"instruction": "Add."}, ("output", "missing")),
        ({"input": "1", "output": "3"}, ("instruction", "missing")),
        (GOOD | {"instruction": " "}, ("instruction", "' '", "not empty")),
        (GOOD | {"output": 3}, ("output", "3")),
        (GOOD | {"input": ["1"]}, ("input",)),
        (GOOD | {"input": 0}, ("input", "0")),
        ({"instruction": "Add.", "instances": ["3"]}, ("instances",)),
        ({"instruction": "Add.", "instances": [{"input": "1"}]}, ("output", "missing")),
        ("Add.", ("str",)),
    ],
)
def test_faulty_entries_are_named(tmp_path, refused, bad, words):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(GOOD), "", json.dumps(bad)]))
    with refused("a.jsonl", "line 3", *words):
        load(tmp_path / "a.jsonl")
    with refused("a.jsonl", "line 3", *words):
        [one.read() for one in shards(tmp_path / "a.jsonl", 2)]
    (tmp_path / "a.json").write_text(json.dumps([GOOD, bad]))
    with refused("a.json", "entry 2", *words):
        load(tmp_path / "a.json")


def test_faulty_files(tmp_path, refused):
    for name, content, words in (
        ("a.json", "[", ["a.json"]),
        ("a.json", "{}", ["dict", "list"]),
        ("a.json", "[]", ["no instructions"]),
        ("a.jsonl", '{"instruction": ', ["line 1"]),
        ("a.jsonl", "", ["no instructions"]),
    ):
        (tmp_path / name).write_text(content)
        with refused(*words):
            load(tmp_path / name)
    (tmp_path / "a.jsonl").write_bytes(b'{"instruction": "\xff"}')
    with refused("line 1", "utf-8"):
        load(tmp_path / "a.jsonl")
    for name in ("none.json", "none.jsonl"):
        with refused(name):
            load(tmp_path / name)
        with refused(name):
            shards(tmp_path / name)


def test_lines_end_where_json_lines_do(tmp_path, refused):
    """Texts may hold other separators of lines: U+2028 is common in text from the web."""
    entry = Instruction("Add\u2028up.", "1\u0085 2", "3")
    line = json.dumps(entry._asdict(), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{line}\r\n{line}\n".encode())
    assert load(tmp_path / "a.jsonl").entries == [entry, entry]
    (tmp_path / "a.jsonl").write_text(f"{line}\n{{}}", encoding="utf-8")
    with refused("line 2", "instruction"):
        load(tmp_path / "a.jsonl")


def test_shards_are_the_file_in_parts(tmp_path):
    made = [one._asdict() for one in make_instructions(23, generator(0, "x"))]
    made[4]["output"] = ""
    (tmp_path / "a.json").write_text(json.dumps(made))
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, made)) + "\n")
    whole = load(tmp_path / "a.json").entries
    assert [len(one) for one in shards(tmp_path / "a.json", 5)] == [5, 5, 5, 5, 2]
    read = [one.read() for one in shards(tmp_path / "a.jsonl", 10)]
    assert [len(one.entries) for one in read] == [4, 5, 5, 5, 3] and sum((one.entries for one in read), []) == whole
    assert [where for one in read for where in one.silent] == ["line 9"]
    first = shards(tmp_path / "a.jsonl", 10)[0].digest()
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, made[:12])))
    assert shards(tmp_path / "a.jsonl", 10)[0].digest() == first


def test_some_are_drawn_in_one_pass(tmp_path):
    """Each about as often, and none twice."""
    made = [GOOD | {"input": str(i)} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, made)))
    drawn = [[int(one.input) for one in load(tmp_path / "a.jsonl", 5, generator(seed, "x")).entries] for seed in range(300)]
    assert all(len(set(one)) == 5 for one in drawn) and drawn[0] != drawn[1]
    counts = [sum(i in one for one in drawn) for i in range(12)]
    assert all(90 < n < 160 for n in counts), counts  # 125 expected, standard deviation 8.5
    assert len(load(tmp_path / "a.jsonl", 99, generator(0, "x")).entries) == 12


def test_prompts_are_those_of_alpaca():
    with_input = prompt(Instruction("Add.", "1 2", "3"))
    assert with_input.startswith("Below is an instruction that describes a task, paired with an input that")
    assert with_input.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    without = prompt(Instruction("Add.", "", "3"))
    assert "Input" not in without and without.endswith("### Instruction:\nAdd.\n\n### Response:\n")


def test_made_up_instructions_are_right():
    made = make_instructions(200, generator(0, "x"))
    assert made == make_instructions(200, generator(0, "x")) and len(set(made)) > 150
    by_text = {asked: respond for asked, respond in instructions.TASKS.values()}
    assert all(one.output == by_text[one.instruction](one.input) for one in made)
    assert by_text["Sort the letters."]("bca") == "abc" and by_text["Write backwards."]("abc") == "cba"


@pytest.fixture(scope="module")
def tokens():
    """A tokenizer, instructions, and these as tokens."""
    pytest.importorskip("transformers", reason="the optional extra text is not installed")
    entries = make_instructions(60, generator(0, "entries"))
    tokenizer = tiny_model(entries, generator(1, "model"))[1]
    return tokenizer, entries, encode(tokenizer, entries)


def test_tokens_of_a_response_are_told_apart(tokens):
    tokenizer, entries, encoded = tokens
    for one, whole, alone in zip(entries, encoded, encode(tokenizer, entries, alone=True)):
        assert whole.ids[-1] == tokenizer.eos_token_id
        assert len(whole.ids) - whole.start == len(one.output) + 1
        back = tokenizer.convert_ids_to_tokens(whole.ids)
        assert "".join(back[: whole.start]) == prompt(one) and "".join(back[whole.start : -1]) == one.output
        assert tokenizer.convert_ids_to_tokens(alone.ids[:1]) == [instructions.RESPONSE] and alone.start == 1
        assert alone.ids[1:].tolist() == whole.ids[whole.start :].tolist()


def test_long_responses_are_cut_and_counted(tokens):
    tokenizer, entries, encoded = tokens
    length, whole = encoded[0].start + 2, len(encoded[0].ids)
    [one] = encode(tokenizer, entries[:1], length)
    assert len(one.ids) == length and (one.start, one.lost, one.cut) == (encoded[0].start, 0, whole - length)
    [alone] = encode(tokenizer, entries[:1], length, alone=True)
    assert alone.ids[1:].tolist() == one.ids[one.start :].tolist()


def test_a_prompt_of_1363_tokens_is_cut_and_says_so(tokens):
    """The first tokens of the prompt stay; a quarter is left to the response, or as much as it has."""
    tokenizer, _, _ = tokens
    asked = Instruction("Write backwards.", "", "abc")
    asked = asked._replace(input="abcdef" * 300)
    asked = asked._replace(input=asked.input[: 1363 - len(encode(tokenizer, [asked._replace(input="x")], 9999)[0].ids) + 5])
    [whole] = encode(tokenizer, [asked], 9999)
    assert whole.start == 1363 and whole.lost == 0
    [one] = encode(tokenizer, [asked])
    assert len(one.ids) == 1024 and one.lost == 1363 - one.start == 1363 - 1020  # 'abc' and the end
    assert one.ids[:1020].tolist() == whole.ids[:1020].tolist() and one.ids[1020:].tolist() == whole.ids[1363:].tolist()
    [talkative] = encode(tokenizer, [asked._replace(output="abc" * 200)])
    assert (len(talkative.ids), talkative.start, talkative.cut) == (1024, 768, 601 - 256)


def test_a_length_that_leaves_no_prompt_is_refused(tokens, refused):
    with refused("instruction 1", "max_length 1"):
        encode(tokens[0], tokens[1][:1], 1)
