"""Instruction data: files, prompts, response losses and complexity of a small model trained for some seconds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from distillery import selection
from distillery.checks import first_line
from distillery.scores import text
from distillery.scores.complexity import maskable, masked_plain
from distillery.scores.text import (
    Instruction,
    complexity,
    encode,
    finetune,
    load,
    load_model,
    make_instructions,
    prompt,
    response_loss_plain,
    response_losses,
    tiny_model,
)
from distillery.seeds import generator

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_files_are_read_back(tmp_path):
    entries = [Instruction("Add.", "1 2", "3"), Instruction("Greet.", "", "Hello\nyou")]
    (tmp_path / "a.json").write_text(json.dumps([one._asdict() for one in entries]))
    assert load(tmp_path / "a.json") == entries
    lines = [json.dumps(GOOD), "", json.dumps({"instruction": "Greet.", "output": "Hello\nyou"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert load(tmp_path / "a.jsonl") == entries


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"instruction": "Add."}, ("output", "missing")),
        ({"input": "1", "output": "3"}, ("instruction", "missing")),
        (GOOD | {"output": "  "}, ("output",)),
        (GOOD | {"output": 3}, ("output", "3")),
        (GOOD | {"input": ["1"]}, ("input",)),
        (GOOD | {"input": 0}, ("input", "0")),
        ("Add.", ("str",)),
    ],
)
def test_faulty_entries_are_named(tmp_path, refused, bad, words):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(GOOD), "", json.dumps(bad)]))
    with refused("a.jsonl", "line 3", *words):
        load(tmp_path / "a.jsonl")
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
    for name in ("none.json", "none.jsonl"):
        with refused(name):
            load(tmp_path / name)


def test_lines_end_where_json_lines_do(tmp_path, refused):
    """Texts may hold other separators of lines: U+2028 is common in text from the web."""
    entry = Instruction("Add\u2028up.", "1\u0085 2", "3")
    line = json.dumps(entry._asdict(), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{line}\r\n{line}\n".encode())
    assert load(tmp_path / "a.jsonl") == [entry, entry]
    (tmp_path / "a.jsonl").write_text(f"{line}\n{{}}", encoding="utf-8")
    with refused("line 2", "instruction"):
        load(tmp_path / "a.jsonl")


def test_prompts_are_those_of_alpaca():
    with_input = prompt(Instruction("Add.", "1 2", "3"))
    assert with_input.startswith("Below is an instruction that describes a task, paired with an input that")
    assert with_input.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    without = prompt(Instruction("Add.", "", "3"))
    assert "Input" not in without and without.endswith("### Instruction:\nAdd.\n\n### Response:\n")


def test_made_up_instructions_are_right():
    made = make_instructions(200, generator(0, "x"))
    assert made == make_instructions(200, generator(0, "x")) and len(set(made)) > 150
    by_text = {asked: respond for asked, respond in text.TASKS.values()}
    assert all(one.output == by_text[one.instruction](one.input) for one in made)
    assert by_text["Sort the letters."]("bca") == "abc" and by_text["Write backwards."]("abc") == "cba"


@pytest.fixture(scope="module")
def trained():
    """A small model of three hundred instructions, trained on half of them for some seconds; all of them encoded."""
    pytest.importorskip("transformers", reason="the optional extra text is not installed")
    entries = make_instructions(300, generator(0, "entries"))
    model, tokenizer = tiny_model(entries, generator(1, "model"))
    encoded = encode(tokenizer, entries)
    model = finetune(model, encoded, range(150), 60, generator(2, "order"), lr=3e-3)
    return model, tokenizer, entries, encoded


def test_tokens_of_a_response_are_told_apart(trained):
    _, tokenizer, entries, encoded = trained
    for one, tokens in zip(entries[:9], encoded):
        assert tokens.ids[-1] == tokenizer.eos_token_id
        assert len(tokens.ids) - tokens.start == len(one.output) + 1
        back = tokenizer.convert_ids_to_tokens(tokens.ids)
        assert "".join(back[: tokens.start]) == prompt(one) and "".join(back[tokens.start : -1]) == one.output


def test_long_responses_are_cut(trained):
    _, tokenizer, entries, encoded = trained
    length = encoded[0].start + 2
    [one] = encode(tokenizer, entries[:1], length)
    assert len(one.ids) == length and one.start == encoded[0].start and one.lost == 0


def test_a_prompt_of_1363_tokens_is_cut_and_says_so(trained):
    """The first tokens of the prompt stay; a quarter is left to the response, or as much as it has."""
    model, tokenizer, _, _ = trained
    asked = Instruction("Write backwards.", "", "abc")
    asked = asked._replace(input="abcdef" * 300)
    asked = asked._replace(input=asked.input[: 1363 - len(encode(tokenizer, [asked._replace(input="x")], 9999)[0].ids) + 5])
    [whole] = encode(tokenizer, [asked], 9999)
    assert whole.start == 1363 and whole.lost == 0
    [one] = encode(tokenizer, [asked])
    assert len(one.ids) == 1024 and one.lost == 1363 - one.start == 1363 - 1020  # 'abc' and the end
    assert one.ids[:1020].tolist() == whole.ids[:1020].tolist() and one.ids[1020:].tolist() == whole.ids[1363:].tolist()
    [talkative] = encode(tokenizer, [asked._replace(output="abc" * 200)])
    assert (len(talkative.ids), talkative.start) == (1024, 768)
    assert response_losses(model, [one, talkative]).isfinite().all()


def test_a_length_that_leaves_no_prompt_is_refused(trained, refused):
    _, tokenizer, entries, _ = trained
    with refused("instruction 1", "max_length 1"):
        encode(tokenizer, entries[:1], 1)


def test_losses_are_their_definition(trained):
    model, _, _, encoded = trained
    losses = response_losses(model, encoded[:12], batch=5)
    assert losses.tolist() == pytest.approx([response_loss_plain(model, one) for one in encoded[:12]], rel=1e-4)


def test_losses_do_not_depend_on_the_batch(trained):
    model, _, _, encoded = trained
    one, many = (response_losses(model, encoded[:40], batch) for batch in (1, 40))
    assert torch.allclose(one, many, rtol=1e-4)


def test_a_path_of_one_is_the_plain_loss(trained):
    model, _, _, encoded = trained
    assert torch.equal(complexity(model, encoded[:20], 1), response_losses(model, encoded[:20]))


def test_complexity_is_the_mean_over_masked_models(trained):
    """Shares 0, .4 and .8 of the original weights of every linear layer but the head, written into a copy."""
    model, _, _, encoded = trained
    wanted = []
    for share in (0, 0.4, 0.8):
        again = type(model)(model.config)
        again.load_state_dict(model.state_dict())
        names = maskable(again)
        assert len(names) == 14 and not any("head" in name or "embed" in name for name in names)
        found = masked_plain({name: again.get_parameter(name) for name in names}, share, "layer")
        with torch.no_grad():
            for name in names:
                again.get_parameter(name).copy_(found[name])
        wanted.append(response_losses(again, encoded[:30]))
    found = complexity(model, encoded[:30], 3, interval=0.4)
    assert torch.allclose(found, torch.stack(wanted).mean(0), rtol=1e-4)


def test_scoring_leaves_the_model_as_it_was(trained):
    model, _, _, encoded = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    complexity(model, encoded[:8])
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_complexity_beside_plain_likelihood(trained):
    """On instructions it has not seen: another order under strong masks, nearly the same under the published ones."""
    model, _, _, encoded = trained
    plain = response_losses(model, encoded[150:])
    published, strong = (complexity(model, encoded[150:], 3, interval) for interval in (0.2, 0.45))
    close, far = (float(spearmanr(one, plain)[0]) for one in (published, strong))
    assert far < close <= 1 and close > 0.9


def test_what_was_learned_is_less_complex(trained):
    model, _, entries, encoded = trained
    scores = complexity(model, encoded)
    lengths = torch.tensor([one.instruction == text.TASKS["count"][0] for one in entries])
    assert scores[lengths].mean() < scores[~lengths].mean()  # one digit of four


def test_flexrand_without_classes(trained):
    model, _, _, encoded = trained
    scores = complexity(model, encoded[150:])
    for gamma in (0.25, 0.75):
        kept = selection.select(scores, 75, None, "flexrand", generator(0, "x"), gamma)
        assert len(set(kept.tolist())) == 75


def test_fine_tuning_learns_in_a_copy_and_repeats(trained, refused):
    model, _, _, encoded = trained
    before = response_losses(model, encoded[150:])
    one, again = (finetune(model, encoded, range(150, 300), 40, generator(0, "x"), lr=3e-3) for _ in range(2))
    losses = response_losses(one, encoded[150:])
    assert losses.mean() < before.mean() and torch.equal(losses, response_losses(again, encoded[150:]))
    assert torch.equal(response_losses(model, encoded[150:]), before)
    with refused("chosen"):
        finetune(model, encoded, [], 1, generator(0, "x"))


def test_models_are_kept_as_others_keep_them(trained, tmp_path, refused):
    model, tokenizer, _, encoded = trained
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    again, its = load_model(str(tmp_path / "model"))
    assert torch.equal(response_losses(again, encoded[:5]), response_losses(model, encoded[:5]))
    assert its("Add.")["input_ids"] == tokenizer("Add.")["input_ids"]
    with refused("nowhere"):
        load_model(str(tmp_path / "nowhere"))


@pytest.fixture
def folder(trained, tmp_path):
    """A small model as files."""
    for one in trained[:2]:
        one.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_code_of_others_is_not_run(folder, monkeypatch, refused):
    """Not even if whoever sits at the terminal would agree."""
    config = json.loads((folder / "config.json").read_text())
    parts = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": parts}))
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with refused("model"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_broken_models_are_refused(folder, refused):
    file = folder / "model.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    lacking = min(name for name in tensors if "q_proj" in name)
    save_file({k: v for k, v in tensors.items() if k != lacking}, file, metadata={"format": "pt"})
    with refused("1 tensors", lacking):
        load_model(str(folder))
    file.write_bytes(content[: len(content) // 2])
    with refused(folder):
        load_model(str(folder))
    file.write_bytes(content)
    load_model(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    with refused(folder):
        load_model(str(folder))


def test_the_first_line_of_an_error_says_something():
    """Messages of transformers may begin with an empty line."""
    assert first_line(ValueError("\n\nno such model\nlook elsewhere")) == "no such model" and first_line(OSError()) == "OSError"


def test_weights_that_are_pickled_are_refused(folder, refused):
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    with refused(folder, "safetensors"):
        load_model(str(folder))


def test_nothing_global_is_drawn():
    pytest.importorskip("transformers", reason="the optional extra text is not installed")
    before = torch.random.get_rng_state()
    models = [tiny_model(make_instructions(5, generator(0, "x")), generator(0, "m"))[0] for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (list(one.parameters()) for one in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_transformers(monkeypatch, refused):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with refused("transformers", "distillery[text]"):
        load_model("anything")
