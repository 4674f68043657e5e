"""A pool of instructions is split without overlap; each choice of half of it is a stored run that a kill or a budget cannot lose."""

import pytest

from distillery import store
from distillery.measure import instructions
from distillery.runs import Runs
from distillery.scores import text

pytest.importorskip("transformers")

HOW = {"masks": 2, "length": 200, "steps": 2, "lr": 3e-3, "batch": 4}


def prepare(folder, n=40, **changes):
    return instructions.prepare(Runs(folder), "", "", n, 0, **HOW | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_parts_are_apart_and_scored(folder):
    pool = prepare(folder)
    sizes = (len(pool.seen), len(pool.entries), len(pool.held_out), len(pool.test), pool.budget, pool.cut)
    assert sizes == (16, 12, 6, 6, 6, 0)
    assert {name: len(scores) for name, scores in pool.scores.items()} == {"complexity": 12, "likelihood": 12, "length": 12}
    assert pool.scores["likelihood"].tolist() == pytest.approx(text.response_losses(pool.model, pool.encoded).tolist())
    assert pool.scores["length"].tolist() == [len(one.output) + 1 for one in pool.entries]  # characters and the end


def test_rows_are_by_seed_and_repeat(folder, tmp_path):
    rows, again = prepare(folder).rows([0, 1]), prepare(tmp_path).rows([0, 1])
    assert len(rows["before"]) == 1 and all(len(results) == 2 for name, results in rows.items() if name != "before")
    told = {name: [one["accuracies"] for one in results] for name, results in rows.items()}
    assert told == {name: [one["accuracies"] for one in results] for name, results in again.items()}
    pool = prepare(folder)
    assert told["before"] == [[pytest.approx(float((-text.response_losses(pool.model, pool.test)).exp().mean()))]]
    assert told["draw 1"] != told["draw 2"]
    one = rows["easiest"][0]
    assert one["samples"] == 8 and one["steps"] == 2 and one["artifact"] is None and one["seconds"] > 0


def test_a_second_start_computes_nothing(folder, monkeypatch):
    first = prepare(folder).rows([0, 1])
    for name in ("finetune", "response_losses", "complexity"):
        monkeypatch.setattr(text, name, lambda *_, **__: pytest.fail("computed again"))
    second = prepare(folder)
    assert second.rows([0, 1]) == first and second.scores["complexity"].shape == (12,)
    assert second.runs.computed == 0 and not second.runs.missing


def test_what_a_kill_left_is_not_made_again(tmp_path, monkeypatch):
    """Stopped in the third fine-tuning of a row; the next start makes the two that are left, with the same bits."""
    whole = [one["accuracies"] for one in prepare(tmp_path / "whole").tuned(range(4), "random")]
    trained, real = [], text.finetune

    def finetune(*given, **options):
        trained.append(1)
        if len(trained) == 4:  # the first one is that of the model before
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(text, "finetune", finetune)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed").tuned(range(4), "random")
    trained.clear()
    found = prepare(tmp_path / "killed").tuned(range(4), "random")
    assert len(trained) == 2 and [one["accuracies"] for one in found] == whole


def test_a_spent_budget_lists_what_is_missing(tmp_path):
    prepare(tmp_path).tuned([0], "random")
    pool = prepare(tmp_path)
    pool.runs.deadline = 0
    found = pool.tuned([0, 1], "random") + pool.tuned([0], "lowest", "complexity")
    assert found[0] and found[1:] == [None, None] and pool.scores is None
    assert len(pool.runs.missing) == 3 and not pool.runs.computed


def test_other_settings_are_other_runs(tmp_path):
    runs = Runs(tmp_path)
    ids = [len(list(tmp_path.glob("runs/*.json")))]
    for changes in ({}, {"masks": 1}, {"steps": 3}, {"n": 41}, {"length": 100}):
        instructions.prepare(runs, "", "", changes.pop("n", 40), 0, **HOW | changes).tuned([0], "lowest", "complexity")
        ids.append(len(list(tmp_path.glob("runs/*.json"))))
    assert ids == [0, 2, 4, 6, 8, 10]  # scores and a row each


def test_a_prompt_that_is_too_long_is_cut_and_counted(tmp_path):
    pool = prepare(tmp_path, length=20)
    longest = max(len(one.instruction) + len(one.input) for one in pool.entries)
    assert longest > 20 and pool.cut > 0
    assert all(len(one.ids) <= 20 and len(one.ids) > one.start for one in pool.encoded)
    assert pool.tuned([0], "lowest", "complexity")[0]["accuracies"][0] > 0


def test_a_trained_model_sees_nothing_before(tmp_path):
    path, model = tmp_path / "own.json", tmp_path / "model"
    entries = text.make_instructions(30, instructions.generator(1, "x"))
    store.write_json(path, [one._asdict() for one in entries])
    network, tokenizer = text.tiny_model(entries, instructions.generator(1, "x"))
    network.save_pretrained(model)
    tokenizer.save_pretrained(model)
    found = instructions.prepare(Runs(tmp_path), str(model), str(path), 0, 0, **HOW)
    assert not found.seen and len(found.entries) == 18 and set(found.entries) <= set(entries)
    assert found.model is found.start
